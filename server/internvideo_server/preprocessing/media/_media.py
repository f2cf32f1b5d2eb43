"""A medium that was fetched: an open file without a name."""

from __future__ import annotations

import copy
import fcntl
import os
import threading
from collections.abc import Iterable
from types import TracebackType

from internvideo_server.errors import invalid

from ._memory import MediaMemory
from ._policy import MediaPolicy

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Media:
    """An open, regular, not empty file; closing it leaves nothing behind. Use it as a context manager.

    Args:
        fd: A readable file descriptor, owned by this object from now on.
        memory: What it uses ``size`` bytes of, if it is in memory; given back when it is closed.

    Attributes:
        fd: The file descriptor. Readers must not rely on its offset (``os.pread``, or reopen ``/proc/self/fd/N``).
        size: Length in bytes, > 0.
        private: Whether nobody else can change the content.
    """

    def __init__(self, fd: int, memory: MediaMemory | None = None) -> None:
        self.fd = fd
        self.private = memory is not None
        self.size = os.fstat(fd).st_size
        self._memory = memory
        self._users = _Users()

    @classmethod
    def from_chunks(cls, chunks: Iterable[bytes | memoryview], policy: MediaPolicy, param: str | None) -> Media:
        """Collect bytes in anonymous memory.

        Args:
            chunks: The content, piece by piece.
            policy: Gives ``max_bytes``.
            param: The request field to name in errors.

        Raises:
            ServingError: INVALID_ARGUMENT if there is nothing or too much; RESOURCE_EXHAUSTED if all requests together have
                too much.
        """
        fd = os.memfd_create("media", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        size = 0
        try:
            for chunk in chunks:
                check_size(size + len(chunk), policy, param, complete=False)
                policy.memory.take(len(chunk))
                size += len(chunk)
                write_all(fd, chunk)
            check_size(size, policy, param)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(fd, policy.memory)
        except BaseException:
            os.close(fd)
            policy.memory.give_back(size)
            raise

    def share(self) -> Media:
        """The same medium for somebody else: it is closed once both have closed theirs."""
        self._users.enter()
        return copy.copy(self)

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            if not self._users.leave():
                return
            os.close(fd)
            if self._memory is not None:
                self._memory.give_back(self.size)

    def __enter__(self) -> Media:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Users:
    """Those who have a medium open."""

    def __init__(self) -> None:
        self._count, self._lock = 1, threading.Lock()

    def enter(self) -> None:
        with self._lock:
            self._count += 1

    def leave(self) -> bool:
        """Whether that was the last one."""
        with self._lock:
            self._count -= 1
            return self._count == 0


def check_size(size: int, policy: MediaPolicy, param: str | None, *, complete: bool = True) -> None:
    """Refuse media over the limit, and empty ones.

    Raises:
        ServingError: INVALID_ARGUMENT with the numbers.
    """
    if size > policy.max_bytes:
        raise invalid(f"the media is larger than the limit of {policy.max_bytes} bytes; send a shorter or smaller one", param)
    if complete and size == 0:
        raise invalid("the media is empty (0 bytes): send the file again", param)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """``os.write`` until everything is written (one call takes at most 2 GiB, and may take less)."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]
