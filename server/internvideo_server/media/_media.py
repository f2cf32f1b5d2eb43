"""A medium that was fetched: an open file without a name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType

from internvideo_server.errors import invalid
from internvideo_server.media._policy import MediaPolicy


class Media:
    """An open, regular, not empty file; closing it leaves nothing behind. Use it as a context manager.

    Args:
        fd: A readable file descriptor, owned by this object from now on.

    Attributes:
        fd: The file descriptor. Readers must not rely on its offset (``os.pread``, or reopen ``/proc/self/fd/N``).
        size: Length in bytes, > 0.
        private: Whether nobody else can change the content.
    """

    def __init__(self, fd: int, *, private: bool = False) -> None:
        self.fd = fd
        self.private = private
        self.size = os.fstat(fd).st_size

    @classmethod
    def from_chunks(cls, chunks: Iterable[bytes | memoryview], policy: MediaPolicy, param: str | None) -> Media:
        """Collect bytes in anonymous memory.

        Args:
            chunks: The content, piece by piece.
            policy: Gives ``max_bytes``.
            param: The request field to name in errors.

        Raises:
            ServingError: INVALID_ARGUMENT if there is nothing or too much.
        """
        fd = os.memfd_create("media", os.MFD_CLOEXEC)
        try:
            size = 0
            for chunk in chunks:
                size += len(chunk)
                check_size(size, policy, param, complete=False)
                write_all(fd, chunk)
            check_size(size, policy, param)
            return cls(fd, private=True)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Media:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def check_size(size: int, policy: MediaPolicy, param: str | None, *, complete: bool = True) -> None:
    """Refuse media over the limit, and empty ones.

    Raises:
        ServingError: INVALID_ARGUMENT with the numbers.
    """
    if size > policy.max_bytes:
        raise invalid(f"the media is larger than the limit of {policy.max_bytes} bytes; send a shorter or smaller one", param)
    if complete and size == 0:
        raise invalid("the media is empty (0 bytes)", param)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """``os.write`` until everything is written (one call takes at most 2 GiB, and may take less)."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]
