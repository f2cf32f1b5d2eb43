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
from typing import Protocol

import torch
from torch import Tensor

from .errors import ErrorCode, ServingError
from .limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME
from .video import FRAME_SIZE, FrameBuffer
from .vision import Stopped

_log = logging.getLogger(__name__)
_READERS = 4  # threads that copy a chunk's frames into page-locked memory: one alone reaches 4 GB/s (docs/performance.md)
_AHEAD = 2  # chunks on the GPU's queue: the next one's frames are fetched while one runs

Frames = Tensor | FrameBuffer  # a tensor is uint8 [T, 3, 448, 448] on any device


class ChunkModel(Protocol):
    """What is needed of :class:`internvideo_server.vision.VisionModel`."""

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

    def embed_chunk(self, frames: Tensor, out: Tensor | None = None, should_stop: Callable[[], bool] | None = None) -> Tensor:
        """See :meth:`VisionModel.embed_chunk`."""
        ...


class ChunkFailedError(RuntimeError):
    """The model raised something for a chunk."""


class Task:
    """One medium on its way through the tower. Made by :meth:`TowerQueue.submit`."""

    def __init__(
        self, frames: Frames, count: int, out: Tensor, over: Callable[[], bool], keep: bool, on_done: Callable[[Task], None]
    ) -> None:
        self.frames: Frames | None = frames
        self.out, self.over, self.keep, self.on_done = out, over, keep, on_done
        self.kept: Tensor | None = None  # a copy of the rows, where one was asked for
        self.failed: str | None = None  # no exception: its traceback would hold the frames; "": nobody wanted it any more
        self.count, self.next, self.flying = count, 0, 0  # frames: all, the first that no chunk took, those in chunks under way
        self.seconds, self.embedded = 0.0, 0  # its share of the chunks' time, and the frames that went through
        self.done = threading.Event()

    def result(self) -> Tensor | None:
        """Wait for the end: the copy of the rows, where one was asked for.

        Raises:
            Stopped: ``over`` returned True.
            ChunkFailedError: In a chunk that this medium had a part in.
        """
        self.done.wait()
        if self.failed is None:
            return self.kept
        raise ChunkFailedError(self.failed) if self.failed else Stopped


class _Chunk:
    """Parts of tasks, one after the other, that go through the tower together."""

    def __init__(self, parts: list[tuple[Task, int, int]], slot: _Slot, began: float) -> None:
        self.parts, self.slot, self.began = parts, slot, began  # (task, first frame, number of frames)
        self.failed: str | None = None

    @property
    def count(self) -> int:
        return sum(count for _, _, count in self.parts)

    def over(self) -> bool:
        return all(task.over() for task, _, _ in self.parts)


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
        self._changed = threading.Condition()  # guards the two below
        self._turn: deque[Task] = deque()  # with frames that no chunk took; the first is next
        self._closing = False
        self._last_end = 0.0
        self._thread = threading.Thread(target=self._run, name="tower", daemon=True)
        self._thread.start()

    def submit(
        self,
        frames: Frames,
        out: Tensor,
        over: Callable[[], bool],
        *,
        keep: bool = False,
        on_done: Callable[[Task], None] = lambda task: None,
    ) -> Task:
        """Start a medium.

        Args:
            frames: T of them, a multiple of 4.
            out: Where its rows go, [16 T, hidden] on the model's device. Not to be touched before the task is done.
            over: Whether nobody wants it any more.
            keep: Copy the rows to memory of their own too.
            on_done: Called by the tower's thread when all is over, before ``result`` returns.

        Raises:
            ServingError: CANCELLED: shutting down.
        """
        count = frames.frame_count if isinstance(frames, FrameBuffer) else len(frames)
        task = Task(frames, count, out, over, keep, on_done)
        with self._changed:
            if self._closing:
                raise ServingError(ErrorCode.CANCELLED, "the server is shutting down")
            self._turn.append(task)
            self._changed.notify()
        return task

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
                while not (self._turn or self._flying or self._closing):
                    self._changed.wait()
                if self._closing and not self._turn and not self._flying:
                    return
                parts, ended = self._pick()
            for task in ended:
                task.failed = ""
                self._end_if_done(task)
            del ended
            if parts:
                self._launch(_Chunk(parts, self._free.pop(), time.monotonic()))
            if self._flying and not (parts and self._free):
                self._finish(self._flying.popleft())
            del parts

    def _pick(self) -> tuple[list[tuple[Task, int, int]], list[Task]]:
        """Frames for the next chunk, and the tasks that nobody wants any more."""
        taken: dict[Task, int] = {}
        ended, room = [], self._model.chunk_frames
        while self._turn and room:
            task = self._turn.popleft()
            if self._closing or task.over():
                ended.append(task)
                continue
            taken[task] = taken.get(task, 0) + FRAMES_PER_GROUP
            room -= FRAMES_PER_GROUP
            if task.next + taken[task] < task.count:
                self._turn.append(task)
        parts = []
        for task, count in taken.items():
            if task not in ended:
                parts.append((task, task.next, count))
                task.next += count
                task.flying += count
        return parts, ended

    def _launch(self, chunk: _Chunk) -> None:
        self._flying.append(chunk)
        try:
            try:
                self._queue(chunk)
            finally:
                chunk.slot.mark()  # fails after an earlier fault of the device
        except Stopped:
            chunk.failed = ""
        except Exception as error:
            _log.exception("a chunk of %d frames failed", chunk.count)
            chunk.failed = f"{type(error).__name__}: {error}"

    def _queue(self, chunk: _Chunk) -> None:
        """Run the chunk; on CUDA all of it is queued on the current stream."""
        frames = self._gather(chunk)
        only = chunk.parts[0][0].out if len(chunk.parts) == 1 else None
        first = chunk.parts[0][1]
        rows = chunk.slot.rows[: _rows(chunk.count)] if only is None else only[_rows(first) : _rows(first + chunk.count)]
        self._model.embed_chunk(frames, rows, chunk.over)
        at = 0
        for task, first, count in chunk.parts:
            if only is None:
                task.out[_rows(first) : _rows(first + count)].copy_(rows[_rows(at) : _rows(at + count)])
            if task.keep and first + count == task.count:
                task.kept = task.out.clone()
            at += count

    def _gather(self, chunk: _Chunk) -> Tensor:
        """The chunk's frames: in place where they are together already, else in the slot's memory."""
        if len(chunk.parts) == 1 and isinstance(frames := chunk.parts[0][0].frames, Tensor):
            _, first, count = chunk.parts[0]
            if frames.device == self._model.device:
                return frames[first : first + count]
        at, on_device = 0, {}
        for task, first, count in chunk.parts:
            place = chunk.slot.frames[at : at + count]
            if isinstance(task.frames, FrameBuffer):
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

    def _read(self, frames: FrameBuffer, first: int, place: Tensor) -> None:
        if self._readers is None:
            frames.read(first, place.numpy())
            return
        step = -(-len(place) // _READERS)
        parts = [(first + at, place[at : at + step].numpy()) for at in range(0, len(place), step)]
        list(self._readers.map(lambda part: frames.read(*part), parts))

    def _finish(self, chunk: _Chunk) -> None:
        try:
            chunk.slot.wait()
        except Exception as error:  # what CUDA reports late
            _log.exception("a chunk of %d frames failed", chunk.count)
            chunk.failed = chunk.failed or f"{type(error).__name__}: {error}"
        self._free.append(chunk.slot)
        now = time.monotonic()
        seconds_a_frame = (now - max(chunk.began, self._last_end)) / chunk.count
        self._last_end = now
        for task, _, count in chunk.parts:
            task.seconds += seconds_a_frame * count
            task.embedded += count if chunk.failed is None else 0
            task.flying -= count
            if chunk.failed is not None and task.failed is None:
                task.failed = chunk.failed
                with self._changed:
                    if task in self._turn:
                        self._turn.remove(task)
            self._end_if_done(task)

    def _end_if_done(self, task: Task) -> None:
        if task.flying or (task.failed is None and task.next < task.count) or task.done.is_set():
            return
        task.frames = None  # a request's tensors must be gone before it is answered
        if task.failed is not None:
            task.kept = None
        try:
            task.on_done(task)
        except Exception:
            _log.exception("a task's end could not be told")
        task.done.set()


def _rows(frames: int) -> int:
    return frames * TOKENS_PER_FRAME
