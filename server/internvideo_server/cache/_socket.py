"""What `preprocessing` and `vit` say to each other beside Triton, each in one message and one answer over a local socket.

"Which of these embeddings do you have?", and "here are the frames of the others": descriptors of the memory into which they were
decoded, so that no byte of them is copied on the way.

The socket has no file (Linux's abstract names), so nothing is left behind however a process ends. Both models are children of
one tritonserver: its process id is the name, and each side checks that the other has the same parent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import struct
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from internvideo_server.cache._leases import LeaseBook
from internvideo_server.cache._tickets import TicketBook
from internvideo_server.video import FrameBuffer

_log = logging.getLogger(__name__)
_MESSAGE_BYTES = 1 << 16
_MOST_DESCRIPTORS = 64  # of one message; Linux takes 253
_TIMEOUT_S = 0.5  # of a question that takes 0.1 ms: without an answer the frames are decoded
_PAUSE_S = 0.1  # when no question can be taken


def socket_name() -> str:
    """The name that the models of this tritonserver share."""
    return f"\0internvideo-vit-{os.getppid()}"


class LeaseServer:
    """Answers for the embeddings that are there, and takes in frames, on a thread of its own.

    Args:
        leases: On the embeddings.
        parcels: Where frames wait for their requests.
        name: Of the socket.

    Raises:
        OSError: The name is taken.
    """

    def __init__(self, leases: LeaseBook[Any], parcels: TicketBook[FrameBuffer], name: str) -> None:
        self._leases, self._parcels = leases, parcels
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(name)
        except OSError:
            self._socket.close()
            raise
        self._socket.listen(128)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="embedding-leases", daemon=True)
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
                    _log.warning("no question about embeddings can be taken: %r", error)
                continue
            with client:
                try:
                    if _same_parent(client):
                        client.settimeout(_TIMEOUT_S)
                        client.send(json.dumps(self._answer(client)).encode())
                except (OSError, ValueError, KeyError, TypeError) as error:
                    _log.warning("a question about embeddings failed: %r", error)

    def _answer(self, client: socket.socket) -> list[bool]:
        message, fds, _, _ = socket.recv_fds(client, _MESSAGE_BYTES, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        received = [FrameBuffer(fd) for fd in fds]  # which close what is not kept
        question = json.loads(message)
        if "drop" in question:
            self._leases.take(question["drop"])
            return []
        ticket, request_id, deadline = question["ticket"], question["request_id"], question["deadline"]
        keys = [bytes.fromhex(key) for key in question["keys"]]
        if not question.get("frames"):
            return self._leases.grant(ticket, request_id, keys, deadline)
        for buffer, count in zip(received, question["frames"], strict=True):
            buffer.frame_count = count
        return [self._parcels.put(ticket, request_id, deadline, dict(zip(keys, received, strict=True)))]


class LeaseClient:
    """Asks the server. Thread-safe.

    Args:
        name: Of the socket.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def lease(self, request_id: str, keys: list[bytes], deadline: float) -> tuple[int, set[bytes]]:
        """Which of the embeddings are there, held for the request. No answer means none: the caller does the work.

        Args:
            request_id: Triton's.
            keys: Of the embeddings.
            deadline: Of the request, in seconds of ``time.monotonic()``.

        Returns:
            The ticket, 0 where nothing is held, and the keys of what is held.
        """
        ticket = secrets.randbits(63) | 1
        held = self._ask({"ticket": ticket, "request_id": request_id, "keys": _hex(keys), "deadline": deadline})
        found = {key for key, there in zip(keys, held, strict=False) if there}
        return (ticket if found else 0), found

    def drop(self, ticket: int) -> None:
        """End a lease whose request will not come; unheard, it ends at the deadline.

        Args:
            ticket: Of the lease.
        """
        self._ask({"drop": ticket})

    def give(self, ticket: int, request_id: str, frames: dict[bytes, FrameBuffer], deadline: float) -> int:
        """Leave frames for the request.

        Args:
            ticket: Of its lease, 0: it has none.
            request_id: Triton's.
            frames: By key.
            deadline: As for :meth:`lease`.

        Returns:
            The request's ticket now; 0: the frames were not taken and must go another way.
        """
        ticket = ticket or secrets.randbits(63) | 1
        counts, fds = [buffer.frame_count for buffer in frames.values()], [buffer.fd for buffer in frames.values()]
        question = {"ticket": ticket, "request_id": request_id, "keys": _hex(frames), "deadline": deadline, "frames": counts}
        return ticket if fds and len(fds) <= _MOST_DESCRIPTORS and self._ask(question, fds) == [True] else 0

    def _ask(self, question: dict[str, Any], fds: Sequence[int] = ()) -> list[bool]:
        """The answer; [] where there is none."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as server:
                server.settimeout(_TIMEOUT_S)
                server.connect(self._name)
                if not _same_parent(server):
                    return []
                socket.send_fds(server, [json.dumps(question).encode()], fds)
                answer: list[bool] = json.loads(server.recv(_MESSAGE_BYTES))
                return answer
        except (OSError, ValueError):
            return []


def _hex(keys: Iterable[bytes]) -> list[str]:
    return [key.hex() for key in keys]


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
