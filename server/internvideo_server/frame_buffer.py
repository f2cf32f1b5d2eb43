"""Decoded frames in memory that processes share: written by a decoder, handed on as a descriptor, read by the tower."""

from __future__ import annotations

import fcntl
import mmap
import os
from types import TracebackType

import numpy as np
import numpy.typing as npt

FRAME_SIZE = 448  # pixels, both sides: the vision tower's input
FRAME_BYTES = 3 * FRAME_SIZE * FRAME_SIZE


class FrameBuffer:
    """Frames in anonymous shared memory that workers write and the server reads. It closes itself with its last reference.

    Args:
        fd: Of memory that another process made; default: new memory.

    Attributes:
        fd: Its descriptor, which another process can be given.
        frame_count: T.
    """

    def __init__(self, fd: int = -1) -> None:
        if fd < 0:
            fd = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # a mapping of memory that is cut ends its reader
        self.fd = fd
        self.frame_count = 0

    @property
    def nbytes(self) -> int:
        """Of all frames."""
        return self.frame_count * FRAME_BYTES

    def frames(self) -> npt.NDArray[np.uint8]:
        """All frames decoded so far, uint8 [T, 3, 448, 448] RGB, without a copy.

        The array keeps the memory alive, also after ``close``.
        """
        shape = (self.frame_count, 3, FRAME_SIZE, FRAME_SIZE)
        if self.frame_count == 0:
            return np.empty(shape, np.uint8)
        return np.frombuffer(mmap.mmap(self.fd, self.nbytes), np.uint8).reshape(shape)

    def check(self, frame_count: int) -> None:
        """See that so many frames are there, and stay.

        Raises:
            ValueError: They are not, or their memory could be cut while it is read.
        """
        try:
            sealed = fcntl.fcntl(self.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        except OSError:  # no memory, but a file
            sealed = 0
        if not sealed or os.fstat(self.fd).st_size < frame_count * FRAME_BYTES:
            raise ValueError(f"no sealed memory of {frame_count} frames")

    def read(self, first: int, into: npt.NDArray[np.uint8]) -> None:
        """Copy frames without mapping them: the pages of a fresh mapping would cost more than the copy.

        Args:
            first: Number of the first frame.
            into: uint8 [n, 3, 448, 448], contiguous.

        Raises:
            OSError: The memory ends before the last frame.
        """
        view, start = into.reshape(-1).data, first * FRAME_BYTES
        done = 0
        while done < len(view):
            count = os.preadv(self.fd, [view[done:]], start + done)
            if count == 0:
                raise OSError(f"frame {first + done // FRAME_BYTES} is not in the buffer")
            done += count

    def reserve(self, frame_count: int) -> None:
        """Make room for so many frames, which other processes write; ``frame_count`` stays."""
        os.ftruncate(self.fd, max(os.fstat(self.fd).st_size, frame_count * FRAME_BYTES))

    def free(self, first: int, count: int) -> None:
        """Give frames' memory back to the host; they read as zeros from then on."""
        with mmap.mmap(self.fd, count * FRAME_BYTES, offset=first * FRAME_BYTES) as pages:
            pages.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Let go of the memory. Closing twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> FrameBuffer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()
