"""Frames on their way to the tower: decoded group by group, by another process, while the first ones are looked at already."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.limits import FRAMES_PER_GROUP

from ._messages import Ending, Fault


class FramesFailedError(Exception):
    """A medium's frames did not all come; the fault's field is relative to the medium's."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class IncomingFrames:
    """Frames of one medium in memory that a decoder may still write. Thread-safe.

    Args:
        buffer: Has room for all of them.
        frame_count: T, a multiple of 4.
        frees: Let each go once it is used.

    Attributes:
        frame_count: As given.
        groups: Numbers of the groups of 4 frames that are whole, in the order in which they came; it only grows.
        ending: None: more is to come.
        used_frames: How many are not read again.
    """

    def __init__(self, buffer: FrameBuffer, frame_count: int, *, frees: bool = False) -> None:
        self._buffer, self.frame_count, self._frees = buffer, frame_count, frees
        self.groups: list[int] = []
        self.ending: Ending | None = None
        self.used_frames = 0
        self._seen: set[int] = set()
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def whole(cls, buffer: FrameBuffer) -> IncomingFrames:
        """All frames of a buffer."""
        incoming = cls(buffer, buffer.frame_count)
        incoming.add(range(-(-buffer.frame_count // FRAMES_PER_GROUP)), Ending())
        return incoming

    def add(self, groups: Iterable[int], ending: Ending | None = None) -> None:
        """Note groups that became whole, and the end.

        Raises:
            ValueError: There is no such group, or not all came of what ended well.
        """
        with self._lock:
            for group in groups:
                if not 0 <= group < -(-self.frame_count // FRAMES_PER_GROUP):
                    raise ValueError(f"group {group} of {self.frame_count} frames")
                if group not in self._seen:
                    self._seen.add(group)
                    self.groups.append(group)
            if ending is not None:
                if ending.fault is None and len(self.groups) * FRAMES_PER_GROUP < self.frame_count:
                    raise ValueError("frames are missing at the end")
                self.ending = ending
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    @property
    def error(self) -> FramesFailedError | None:
        """What went wrong."""
        fault = None if self.ending is None else self.ending.fault
        return None if fault is None else FramesFailedError(fault)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call it after each change, from another thread."""
        with self._lock:
            self._listeners.append(listener)

    def leave(self, listener: Callable[[], None]) -> None:
        """Call it no more."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)

    def read(self, first: int, into: npt.NDArray[np.uint8]) -> None:
        """See :meth:`FrameBuffer.read`."""
        self._buffer.read(first, into)

    def used(self, first: int, count: int) -> None:
        """The frames are not read again. One thread's."""
        self.used_frames += count
        if self._frees:
            self._buffer.free(first, count)
