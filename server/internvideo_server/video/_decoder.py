"""The server's side of decoding: worker processes, one medium at a time each.

Own processes instead of a pool of ``multiprocessing`` (or pebble, loky): those keep named semaphores in /dev/shm, share
locks that a killed worker takes with it, and need ``sys.executable`` to be a Python (inside a Triton stub it is none).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import queue
import threading
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.media import POLL_SECONDS, Budget
from internvideo_server.video._process import WorkerDiedError, WorkerProcess, find_python
from internvideo_server.video._request import FRAME_BYTES, FRAME_SIZE, DecodedMedia, DecodeLimits, DecodeRequest

_START_SECONDS = 120.0  # 0.3 s of imports, but from a slow disk on a busy machine
_MAX_THREADS = 16  # more decoding threads gain nothing and cost a frame of memory each


class FrameBuffer:
    """Frames in anonymous shared memory that workers write and the server reads. It closes itself with its last reference.

    Args:
        fd: Of memory that another process made; default: new memory.

    Attributes:
        fd: Its descriptor, which another process can be given.
        frame_count: T.
    """

    def __init__(self, fd: int = -1) -> None:
        self.fd = os.memfd_create("frames", os.MFD_CLOEXEC) if fd < 0 else fd
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


class FrameDecoder:
    """Decodes media in worker processes that can be ended at any moment. Thread-safe.

    Args:
        workers: How many media are decoded at once.
        limits: What is taken on.
        threads: Threads of all workers together; default: the machine's cores. The media that are decoded at a time share them.
        python: The Python program; default: this interpreter's.

    Attributes:
        limits: As given.

    Raises:
        RuntimeError: A worker does not start (its own error is on stderr).
    """

    def __init__(
        self,
        workers: int = 2,
        limits: DecodeLimits | None = None,
        *,
        threads: int | None = None,
        python: str | None = None,
    ) -> None:
        self.limits = limits or DecodeLimits()
        self._threads = threads or min(_MAX_THREADS, len(os.sched_getaffinity(0)))
        self._active = 0
        self._counting = threading.Lock()
        self._closed = threading.Event()
        self._idle: queue.LifoQueue[WorkerProcess] = queue.LifoQueue()
        program, limits_json = python or find_python(), json.dumps(dataclasses.asdict(self.limits))
        self._workers = [WorkerProcess(program, limits_json, self._closed) for _ in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)
        try:
            for worker in self._workers:
                worker.start()
            for worker in self._workers:
                worker.wait_ready(Budget.seconds(_START_SECONDS))
        except (ServingError, WorkerDiedError, OSError) as error:
            self.close()
            raise RuntimeError(f"a decoder process ({program}) did not start: {error}") from error

    def decode(self, medium_fd: int, request: DecodeRequest, buffer: FrameBuffer, budget: Budget | None = None) -> DecodedMedia:
        """Decode one medium and append its frames to the buffer.

        Args:
            medium_fd: The open medium (``Media.fd``).
            request: What to decode.
            buffer: Takes the frames; its count stays as it is if this fails. Not shared with another call at the same time.
            budget: Ends waiting and decoding early.

        Raises:
            ServingError: INVALID_ARGUMENT (with the reason), INTERNAL (the decoder crashed), DEADLINE_EXCEEDED or CANCELLED.
        """
        budget = budget or Budget()
        message = {
            "kind": request.kind,
            "sampling": dataclasses.asdict(request.sampling),
            "skip_frames": buffer.frame_count,
        }
        worker = self._take(budget)
        with self._counting:
            self._active += 1
            message["threads"] = max(1, self._threads // self._active)
        try:
            if self._closed.is_set():
                raise ServingError(ErrorCode.CANCELLED, "the server is shutting down")
            answer = self._ask(worker, message, (medium_fd, buffer.fd), budget)
        except WorkerDiedError as error:
            text = f"the decoder ended unexpectedly ({error}); other requests go on"
            raise ServingError(ErrorCode.INTERNAL, text, request.param) from None
        finally:
            with self._counting:
                self._active -= 1
            self._idle.put(worker)
        if "error" in answer:
            param = f"{request.param}.{answer['param']}" if request.param else answer["param"]
            raise ServingError(ErrorCode(answer["error"]), answer["message"], param)
        decoded = DecodedMedia(**answer["decoded"])
        buffer.frame_count += decoded.frame_count
        return decoded

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def close(self) -> None:
        """End all workers at once; requests in progress fail as CANCELLED. Closing twice is fine."""
        if self._closed.is_set():
            return
        self._closed.set()
        for worker in self._workers:
            worker.kill()
        for _ in self._workers:  # busy ones come back at once
            self._idle.get().dispose()

    def __enter__(self) -> FrameDecoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _take(self, budget: Budget) -> WorkerProcess:
        while True:
            budget.check("waiting for a decoder")
            with contextlib.suppress(queue.Empty):
                return self._idle.get(timeout=POLL_SECONDS)
            if self._closed.is_set():
                raise ServingError(ErrorCode.CANCELLED, "the server is shutting down")

    @staticmethod
    def _ask(worker: WorkerProcess, message: dict[str, Any], fds: tuple[int, ...], budget: Budget) -> dict[str, Any]:
        """One job. A worker that is dead, or busy with what nobody wants any more, is replaced."""
        try:
            worker.start()  # no-op unless it could not be started last time
            worker.wait_ready(budget)
            worker.send(message, fds)
            return worker.receive(budget)
        except OSError as error:
            raise WorkerDiedError(f"it cannot be started: {error.strerror}") from None
        except BaseException:
            worker.kill()
            with contextlib.suppress(OSError, ServingError):  # shutting down, or no process to be had: next time
                worker.start()  # gets ready while others work
            raise
