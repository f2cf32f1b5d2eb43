"""What `preprocessing` and `vit` say to each other beside Triton, each in one message and one answer over a local socket.

"Which of these embeddings do you have?", "here are the frames of the others": descriptors of the memory into which they are
decoded, so that no byte of them is copied on the way; and "these groups of them are whole now", until the last one is.

The socket has no file (Linux's abstract names), so nothing is left behind however a process ends. Its name is the run's random
id, a parameter of both models, so nobody can take it first; and each side checks that the other has the same parent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from internvideo_server.frame_buffer import FrameBuffer

from ._incoming import IncomingFrames
from ._messages import ANSWERS, QUESTIONS, FramePart, Held, HoldEmbeddings, HoldFrames, MoreFrames, Question, Release
from ._reservations import Reservations

_log = logging.getLogger(__name__)
_MESSAGE_BYTES = 1 << 16
_MOST_DESCRIPTORS = 64  # of one message; Linux takes 253
_TIMEOUT_S = 0.5  # of a question that takes 0.1 ms: without an answer the frames are decoded
_PAUSE_S = 0.1  # when no question can be taken


class HandoffServer:
    """Answers for `vit`'s reservations, on a thread of its own.

    Args:
        reservations: Where things wait for requests.
        handoff_id: Names the socket; both models are told it.

    Raises:
        OSError: The name is taken.
    """

    def __init__(self, reservations: Reservations[Any], handoff_id: str) -> None:
        self._reservations = reservations
        self._streams: WeakValueDictionary[int, IncomingFrames] = WeakValueDictionary()  # that a request waits for
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(_address(handoff_id))
        except OSError:
            self._socket.close()
            raise
        self._socket.listen(128)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="handoff", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Closing twice is fine."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the accept
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._socket.accept()
            except OSError as error:  # closing, or too many files are open
                if not self._closed.wait(_PAUSE_S):
                    _log.warning("no question from preprocessing can be taken: %r", error)
                continue
            with client:
                try:
                    if _same_parent(client):
                        client.settimeout(_TIMEOUT_S)
                        client.send(ANSWERS.dump_json(self._answer(client)))
                except (OSError, ValueError) as error:
                    _log.warning("a question from preprocessing failed: %r", error)

    def _answer(self, client: socket.socket) -> Held:
        message, fds, _, _ = socket.recv_fds(client, _MESSAGE_BYTES, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        received = [FrameBuffer(fd) for fd in fds]  # which close what is not kept
        match QUESTIONS.validate_json(message):
            case HoldEmbeddings(reservation, request_id, deadline, keys):
                held = self._reservations.hold_embeddings(reservation, request_id, deadline, keys)
                return Held(tuple(held))
            case HoldFrames(reservation, request_id, deadline, parts):
                frames = {part.key: self._incoming(part, buffer) for part, buffer in zip(parts, received, strict=True)}
                params = {part.key: part.param for part in parts if part.param}
                taken = self._reservations.hold_frames(reservation, request_id, deadline, frames, params)
                return Held(tuple(frames) if taken else ())
            case MoreFrames(stream, groups, ending):
                incoming = self._streams.get(stream)
                if incoming is not None:
                    incoming.add(groups, ending)
                    return Held(used=incoming.used_frames)
                return Held(wanted=False)
            case Release(reservation):
                self._reservations.claim(reservation)
                return Held()

    def _incoming(self, part: FramePart, buffer: FrameBuffer) -> IncomingFrames:
        """The frames of a stream, which several requests may wait for."""
        buffer.check(part.frame_count)
        incoming = self._streams.get(part.stream)
        if incoming is None:
            incoming = IncomingFrames(buffer, part.frame_count, frees=part.frees)
            self._streams[part.stream] = incoming
        incoming.add(part.groups, part.ending)
        return incoming


class HandoffClient:
    """Reserves things in `vit`. Thread-safe.

    Args:
        handoff_id: Names the socket; both models are told it.
    """

    def __init__(self, handoff_id: str) -> None:
        self._address = _address(handoff_id)

    def reserve(self, request_id: str, deadline: float) -> Reservation:
        """A reservation for a request, of nothing yet.

        Args:
            request_id: Triton's.
            deadline: Of the request, in seconds of ``time.monotonic()``.
        """
        return Reservation(self, request_id, deadline)

    def ask(self, question: Question, fds: Sequence[int] = ()) -> Held | None:
        """The answer; None where there is none: the caller does the work, or sends the frames another way."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as server:
                server.settimeout(_TIMEOUT_S)
                server.connect(self._address)
                if not _same_parent(server):
                    return None
                socket.send_fds(server, [QUESTIONS.dump_json(question)], fds)
                return ANSWERS.validate_json(server.recv(_MESSAGE_BYTES))
        except (OSError, ValueError):
            return None


class Reservation:
    """What `vit` holds for one request. Made by :meth:`HandoffClient.reserve`; one thread's.

    Attributes:
        number: By which the request claims it; 0: nothing is held.
    """

    def __init__(self, client: HandoffClient, request_id: str, deadline: float) -> None:
        self._client, self._request_id, self._deadline = client, request_id, deadline
        self._own = secrets.randbits(63) | 1
        self.number = 0

    def hold_embeddings(self, keys: Sequence[bytes]) -> set[bytes]:
        """Which of the embeddings are there; they are held."""
        if not keys:
            return set()
        question = HoldEmbeddings(self._own, self._request_id, self._deadline, tuple(keys))
        held = set((self._client.ask(question) or Held()).keys) & set(keys)
        if held:
            self.number = self._own
        return held

    def hold_frames(self, parts: Sequence[tuple[FramePart, FrameBuffer]]) -> bool:
        """Leave frames for the request; False: they were not taken and must go another way."""
        if not 0 < len(parts) <= _MOST_DESCRIPTORS:
            return False
        question = HoldFrames(self._own, self._request_id, self._deadline, tuple(part for part, _ in parts))
        answer = self._client.ask(question, [buffer.fd for _, buffer in parts]) or Held()
        taken = set(answer.keys) == {part.key for part, _ in parts}
        if taken:
            self.number = self._own
        return taken

    def tell(self, more: MoreFrames) -> Held | None:
        """Of streams that were held; None: there was no answer."""
        return self._client.ask(more)

    def release(self) -> None:
        """Let go of what is held, if anything is; unheard, it ends at the deadline."""
        if self.number:
            self._client.ask(Release(self.number))
            self.number = 0


def _address(handoff_id: str) -> str:
    # A rendered repository may serve several tritonservers: the parent keeps them apart.
    return f"\0internvideo-{handoff_id}-{os.getppid()}"


def _same_parent(peer: socket.socket) -> bool:
    """Whether the other side is a child of this process's parent, or this process (tests)."""
    pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.getuid() or pid <= 0:  # 0: of another process namespace
        return False
    return pid == os.getpid() or _parent(pid) == os.getppid()


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return -1
