"""The tower's work, cut into chunks that several requests share.

One thread owns the device. It fills each chunk with groups of 4 frames of the videos that wait, one of each in turn, so a short
video is done after a few chunks however long the others are, and the memory follows the chunk, not the requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from internvideo_server.deadline import POLL_SECONDS, Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.frame_buffer import FRAME_SIZE, FrameBuffer
from internvideo_server.handoff import IncomingFrames
from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME

from .task import ENDED, Frames, State, Task

_log = logging.getLogger(__name__)
_READERS = 4  # threads that copy a chunk's frames into page-locked memory: one alone reaches 4 GB/s (docs/performance.md)
_AHEAD = 2  # chunks on the GPU's queue: the next one's frames are fetched while one runs


class ChunkModel(Protocol):
    """What is needed of :class:`internvideo_server.vit.vision.VisionModel`."""

    chunk_frames: int

    @property
    def hidden_size(self) -> int:
        """Width of a row."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the rows are made."""
        ...

    def embed_chunk(self, frames: Tensor, out: Tensor | None = None, deadline: Deadline | None = None) -> Tensor:
        """See :meth:`VisionModel.embed_chunk`."""
        ...


class _Chunk:
    """Parts of tasks, one after the other, that go through the tower together."""

    def __init__(self, parts: list[tuple[Task, int, int]], slot: _Slot, began: float) -> None:
        self.parts, self.slot, self.began = parts, slot, began  # (task, first frame, number of frames)
        self.state, self.failure, self.short = State.RUNNING, "", False
        self.deadline = Deadline.last_of([task.deadline for task, _, _ in parts])

    def fail(self, error: Exception) -> None:
        """Note what went wrong first."""
        _log.exception("a chunk of %d frames failed", self.count)
        if self.state is not State.FAILED:
            self.state, self.failure = State.FAILED, f"{type(error).__name__}: {error}"
            self.short = isinstance(error, torch.OutOfMemoryError | MemoryError)

    @property
    def count(self) -> int:
        return sum(count for _, _, count in self.parts)


class _Slot:
    """The memory of a chunk under way: frames on the host, page-locked for a GPU, and rows where several tasks share it."""

    def __init__(self, model: ChunkModel) -> None:
        self._cuda = model.device.type == "cuda"
        shape = (model.chunk_frames, 3, FRAME_SIZE, FRAME_SIZE)
        self.frames = torch.empty(shape, dtype=torch.uint8, pin_memory=self._cuda)
        self.rows = torch.empty(shape[0] * TOKENS_PER_FRAME, model.hidden_size, dtype=model.dtype, device=model.device)
        self._ran = torch.cuda.Event(blocking=True) if self._cuda else None  # type: ignore[no-untyped-call]

    def mark(self) -> None:
        """What was queued so far is this chunk."""
        if self._ran is not None:
            self._ran.record()

    def wait(self) -> None:
        """Wait until the chunk has run."""
        if self._ran is not None:
            self._ran.synchronize()


class TowerQueue:
    """Takes media, answers when they have been through the tower. Thread-safe.

    Args:
        model: The tower.
    """

    def __init__(self, model: ChunkModel) -> None:
        self._model = model
        self._readers = ThreadPoolExecutor(_READERS, "frames") if model.device.type == "cuda" else None
        self._free = [_Slot(model) for _ in range(_AHEAD if model.device.type == "cuda" else 1)]
        self._flying: deque[_Chunk] = deque()
        self._changed = threading.Condition()  # held to change what follows
        self._turn: deque[Task] = deque()  # with frames that no chunk took; the first is next
        self._open: dict[Task, Callable[[], None]] = {}  # whose frames are still coming, and what is told of them
        self._closing = False
        self._last_end = 0.0
        self._thread = threading.Thread(target=self._run, name="tower", daemon=True)
        self._thread.start()

    def submit(
        self,
        frames: Frames,
        out: Tensor,
        deadline: Deadline,
        *,
        keep: bool = False,
        on_done: Callable[[Task], None] = lambda task: None,
    ) -> Task:
        """Start a medium.

        Args:
            frames: T of them, a multiple of 4.
            out: Where its rows go, [16 T, hidden] on the model's device. Not to be touched before the task is done.
            deadline: Ends the work once expired.
            keep: Copy the rows to memory of their own too.
            on_done: Called by the tower's thread when all is over, before ``result`` returns.

        Raises:
            ServingError: CANCELLED: shutting down.
        """
        count = len(frames) if isinstance(frames, Tensor) else frames.frame_count
        task = Task(frames, count, out, deadline, keep, on_done)
        with self._changed:
            if self._closing:
                raise ServingError(ErrorCode.CANCELLED, "the server is shutting down")
            if isinstance(frames, IncomingFrames):
                self._open[task] = partial(self._more, task)
                frames.listen(self._open[task])
            self._line_up(task)
            self._changed.notify()
        return task

    def _more(self, task: Task) -> None:
        with self._changed:
            self._line_up(task)
            self._changed.notify()

    def _line_up(self, task: Task) -> None:
        if task.next < task.there and task not in self._turn and task.state not in ENDED:
            self._turn.append(task)

    def close(self) -> None:
        """End the thread; what is not finished is stopped. Closing twice is fine."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        if self._readers is not None:
            self._readers.shutdown()

    @torch.inference_mode()
    def _run(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.set_device(self._model.device)
        while True:
            with self._changed:
                while not (self._may_pick() or self._over() or self._flying or self._closing):
                    self._changed.wait(POLL_SECONDS if self._open else None)
                if self._closing and not (self._turn or self._open or self._flying):
                    return
                ended = self._over()
                for task in ended:
                    self._forget(task)
                parts = self._pick() if self._may_pick() else []
            for task in ended:
                self._end_if_done(task)
            del ended
            if parts:
                self._launch(_Chunk(parts, self._free.pop(), time.monotonic()))
            if self._flying and not (parts and self._free):
                self._finish(self._flying.popleft())
            del parts

    def _may_pick(self) -> bool:
        """Whether a chunk is full, or nothing is to be gained by waiting until it is: a shorter one takes a GPU as long."""
        ready = sum(task.there - task.next for task in self._turn)
        return ready >= self._model.chunk_frames or any(task.complete for task in self._turn)

    def _over(self) -> list[Task]:
        """Tasks that nobody wants any more, whose frames did not come, or whose last ones are through."""
        over = []
        for task in {*self._turn, *self._open}:
            fault = task.frames.error if isinstance(task.frames, IncomingFrames) else None
            if self._closing or task.deadline.expired():
                task.state = State.CANCELLED
            elif fault is not None:
                task.state, task.fault = State.FAILED, fault
            elif not (task.complete and task.next == task.count):
                continue
            over.append(task)
        return over

    def _forget(self, task: Task) -> None:
        if task in self._turn:
            self._turn.remove(task)
        if (listener := self._open.pop(task, None)) is not None and isinstance(task.frames, IncomingFrames):
            task.frames.leave(listener)

    def _pick(self) -> list[tuple[Task, int, int]]:
        """Frames for the next chunk."""
        taken: dict[Task, int] = {}
        room = self._model.chunk_frames
        while self._turn and room:
            task = self._turn.popleft()
            taken[task] = taken.get(task, 0) + FRAMES_PER_GROUP
            room -= FRAMES_PER_GROUP
            if task.next + taken[task] < task.there:
                self._turn.append(task)
        parts = []
        for task, count in taken.items():
            task.state = State.RUNNING
            parts += [(task, first, run) for first, run in task.take(count)]
        return parts

    def _launch(self, chunk: _Chunk) -> None:
        self._flying.append(chunk)
        try:
            try:
                self._queue(chunk)
            finally:
                chunk.slot.mark()  # fails after an earlier fault of the device
        except ServingError:  # by the deadline
            chunk.state = State.CANCELLED
        except Exception as error:
            chunk.fail(error)

    def _queue(self, chunk: _Chunk) -> None:
        """Run the chunk; on CUDA all of it is queued on the current stream."""
        frames = self._gather(chunk)
        only = chunk.parts[0][0].out if len(chunk.parts) == 1 else None
        first = chunk.parts[0][1]
        rows = chunk.slot.rows[: _rows(chunk.count)] if only is None else only[_rows(first) : _rows(first + chunk.count)]
        self._model.embed_chunk(frames, rows, chunk.deadline)
        at = 0
        for task, first, count in chunk.parts:
            if only is None:
                task.out[_rows(first) : _rows(first + count)].copy_(rows[_rows(at) : _rows(at + count)])
            at += count
        for task in {task for task, _, _ in chunk.parts}:
            if task.keep and task.next == task.count:  # the last of its chunks
                task.kept = task.out.clone()

    def _gather(self, chunk: _Chunk) -> Tensor:
        """The chunk's frames: in place where they are together already, else in the slot's memory."""
        if len(chunk.parts) == 1 and isinstance(frames := chunk.parts[0][0].frames, Tensor):
            _, first, count = chunk.parts[0]
            if frames.device == self._model.device:
                return frames[first : first + count]
        at, on_device = 0, {}
        for task, first, count in chunk.parts:
            place = chunk.slot.frames[at : at + count]
            if isinstance(task.frames, FrameBuffer | IncomingFrames):
                self._read(task.frames, first, place)
            elif task.frames is not None and task.frames.is_cuda:
                on_device[at] = task.frames[first : first + count]
            elif task.frames is not None:
                place.copy_(task.frames[first : first + count])
            at += count
        gathered = chunk.slot.frames[:at]
        if on_device:
            gathered = gathered.to(self._model.device, non_blocking=True)
            for at, part in on_device.items():
                gathered[at : at + len(part)].copy_(part, non_blocking=True)
        return gathered

    def _read(self, frames: FrameBuffer | IncomingFrames, first: int, place: Tensor) -> None:
        if self._readers is None:
            frames.read(first, place.numpy())
        else:
            step = -(-len(place) // _READERS)
            parts = [(first + at, place[at : at + step].numpy()) for at in range(0, len(place), step)]
            list(self._readers.map(lambda part: frames.read(*part), parts))
        if isinstance(frames, IncomingFrames):
            frames.used(first, len(place))

    def _finish(self, chunk: _Chunk) -> None:
        try:
            chunk.slot.wait()
        except Exception as error:  # what CUDA reports late
            chunk.fail(error)
        self._free.append(chunk.slot)
        now = time.monotonic()
        seconds_a_frame = (now - max(chunk.began, self._last_end)) / chunk.count
        self._last_end = now
        for task, _, count in chunk.parts:
            task.seconds += seconds_a_frame * count
            task.embedded += count if chunk.state is State.RUNNING else 0
            task.flying -= count
            if chunk.state in ENDED and task.state not in ENDED:
                task.state, task.failure, task.short = chunk.state, chunk.failure, chunk.short
            if task.state in ENDED or (task.complete and task.next == task.count):
                with self._changed:
                    self._forget(task)
            self._end_if_done(task)

    def _end_if_done(self, task: Task) -> None:
        through = task.next == task.count and task.complete
        if task.flying or not (task.state in ENDED or through) or task.done.is_set():
            return
        if task.state not in ENDED and isinstance(task.frames, IncomingFrames) and task.frames.error is not None:
            task.state, task.fault = State.FAILED, task.frames.error  # told after the last of them had been through
        task.frames = None  # a request's tensors must be gone before it is answered
        if task.state in ENDED:
            task.kept = None
        else:
            task.state = State.DONE
        try:
            task.on_done(task)
        except Exception:
            _log.exception("a task's end could not be told")
        task.done.set()


def _rows(frames: int) -> int:
    return frames * TOKENS_PER_FRAME
