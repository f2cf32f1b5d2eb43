"""One medium on its way through the tower, and how it may end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum, auto

from torch import Tensor

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.handoff import IncomingFrames
from internvideo_server.limits import FRAMES_PER_GROUP

Frames = Tensor | FrameBuffer | IncomingFrames  # a tensor is uint8 [T, 3, 448, 448] on any device


class ChunkFailedError(RuntimeError):
    """The model raised something for a chunk."""


class NoMemoryError(ServingError):
    """The device had no memory for a chunk: a fault of the moment."""

    def __init__(self) -> None:
        text = "the vision model's device has no memory left for the frames; try again in a moment"
        super().__init__(ErrorCode.UNAVAILABLE, text)


class State(Enum):
    """Of a task or a chunk."""

    WAITING = auto()  # no chunk has frames of it yet
    RUNNING = auto()
    DONE = auto()
    CANCELLED = auto()  # nobody wanted it any more, or the server shuts down
    FAILED = auto()


ENDED = (State.DONE, State.CANCELLED, State.FAILED)


class Task:
    """One medium on its way through the tower. Made by :meth:`TowerQueue.submit`."""

    def __init__(
        self, frames: Frames, count: int, out: Tensor, deadline: Deadline, keep: bool, on_done: Callable[[Task], None]
    ) -> None:
        self.frames: Frames | None = frames
        self.out, self.deadline, self.keep, self.on_done = out, deadline, keep, on_done
        self.kept: Tensor | None = None  # a copy of the rows, where one was asked for
        self.state = State.WAITING
        self.failure = ""  # of a failed one; no exception: its traceback would hold the frames
        self.count, self.next, self.flying = count, 0, 0  # frames: all, those that chunks took, those in chunks under way
        self.short = False  # of memory: why it failed
        self.fault: Exception | None = None  # of frames that did not come
        self.seconds, self.embedded = 0.0, 0  # its share of the chunks' time, and the frames that went through
        self.done = threading.Event()

    def result(self) -> Tensor | None:
        """Wait for the end: the copy of the rows, where one was asked for.

        Raises:
            ServingError: CANCELLED: nobody wanted it any more.
            ChunkFailedError: In a chunk that this medium had a part in.
        """
        self.done.wait()
        if (error := self.error) is not None:
            raise error
        return self.kept

    @property
    def error(self) -> Exception | None:
        """What ``result`` raises."""
        if self.state is State.CANCELLED:
            return ServingError(ErrorCode.CANCELLED, "nobody waits for the embeddings any more")
        if self.state is State.FAILED and (self.fault is not None or self.short):
            return self.fault or NoMemoryError()
        return ChunkFailedError(self.failure) if self.state is State.FAILED else None

    @property
    def there(self) -> int:
        """How many of its frames are there."""
        frames = self.frames
        return FRAMES_PER_GROUP * len(frames.groups) if isinstance(frames, IncomingFrames) else self.count

    @property
    def complete(self) -> bool:
        """Whether nothing more will come."""
        return not isinstance(self.frames, IncomingFrames) or self.frames.ending is not None

    def take(self, count: int) -> list[tuple[int, int]]:
        """The next frames for a chunk, as runs: first frame, number of frames."""
        frames, start = self.frames, self.next
        self.next += count
        self.flying += count
        if not isinstance(frames, IncomingFrames):
            return [(start, count)]
        runs: list[tuple[int, int]] = []
        for group in frames.groups[start // FRAMES_PER_GROUP : self.next // FRAMES_PER_GROUP]:
            first = FRAMES_PER_GROUP * group
            if runs and sum(runs[-1]) == first:
                runs[-1] = runs[-1][0], runs[-1][1] + FRAMES_PER_GROUP
            else:
                runs.append((first, FRAMES_PER_GROUP))
        return runs
