"""The question "which of these do you have?" from `preprocessing` to `vit`: one message and one answer over a local socket.

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
from pathlib import Path
from typing import Any

from internvideo_server.cache._leases import LeaseBook

_log = logging.getLogger(__name__)
_MESSAGE_BYTES = 1 << 16
_TIMEOUT_S = 0.5  # of a question that takes 0.1 ms: without an answer the frames are decoded


def socket_name() -> str:
    """The name that the models of this tritonserver share."""
    return f"\0internvideo-vit-{os.getppid()}"


class LeaseServer:
    """Answers for a :class:`LeaseBook`, on a thread of its own.

    Args:
        book: The leases.
        name: Of the socket.

    Raises:
        OSError: The name is taken.
    """

    def __init__(self, book: LeaseBook[Any], name: str) -> None:
        self._book = book
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(name)
        except OSError:
            self._socket.close()
            raise
        self._socket.listen(128)
        self._thread = threading.Thread(target=self._serve, name="embedding-leases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Closing twice is fine."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the accept
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                try:
                    if _same_parent(client):
                        client.settimeout(_TIMEOUT_S)
                        question = json.loads(client.recv(_MESSAGE_BYTES))
                        keys = [bytes.fromhex(key) for key in question["keys"]]
                        held = self._book.grant(question["ticket"], question["request_id"], keys, question["deadline"])
                        client.send(json.dumps(held).encode())
                except (OSError, ValueError, KeyError, TypeError) as error:
                    _log.warning("a question about embeddings failed: %r", error)


class LeaseClient:
    """Asks the server. Thread-safe.

    Args:
        name: Of the socket.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def lease(self, request_id: str, keys: list[bytes], deadline: float) -> tuple[int, set[bytes]]:
        """Which of the values are there, held for the request. No answer means none: the caller does the work.

        Args:
            request_id: Triton's.
            keys: Of the values.
            deadline: Of the request, in seconds of ``time.monotonic()``.

        Returns:
            The ticket, 0 where nothing is held, and the keys of what is held.
        """
        ticket = secrets.randbits(63) | 1
        question = {"ticket": ticket, "request_id": request_id, "keys": [key.hex() for key in keys], "deadline": deadline}
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as server:
                server.settimeout(_TIMEOUT_S)
                server.connect(self._name)
                if not _same_parent(server):
                    return 0, set()
                server.send(json.dumps(question).encode())
                held = json.loads(server.recv(_MESSAGE_BYTES))
        except (OSError, ValueError):
            return 0, set()
        found = {key for key, there in zip(keys, held, strict=True) if there}
        return (ticket if found else 0), found


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
