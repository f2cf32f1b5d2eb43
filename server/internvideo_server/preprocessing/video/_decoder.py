"""The server's side of decoding: worker processes, one medium at a time each.

Own processes instead of a pool of ``multiprocessing`` (or pebble, loky): those keep named semaphores in /dev/shm, share
locks that a killed worker takes with it, and need ``sys.executable`` to be a Python (inside a Triton stub it is not).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from pydantic import TypeAdapter

from internvideo_server.deadline import POLL_SECONDS, Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.limits import FRAMES_PER_GROUP

from ._forks import ForkServer, WorkerDiedError, check_open, find_python
from ._process import WorkerProcess
from ._request import IMAGE_FRAMES, DecodedMedia, DecodeLimits, DecodeRequest

_log = logging.getLogger(__name__)
_START_SECONDS = 120.0  # of a decoder on a GPU, on a busy machine
_MEDIA_PER_WORKER = 1  # so that no medium meets what another left behind
_MEDIA_PER_GPU_WORKER = 100  # there a start takes as long as a decode
_MOST_AHEAD = 128  # frames that wait for the tower where each goes when it is used: 77 MB; a GPU's needs 25 ms for 16 of them
_PAUSE_SECONDS = 0.01  # in which a GPU's tower uses 6 frames
_MAX_THREADS = 16  # more decoding threads gain nothing and cost a frame of memory each


class Progress(Protocol):
    """Told how a decode goes on, by the thread that waits for it."""

    def plan(self, planned: DecodedMedia) -> None:
        """What will be decoded; the damage is not known yet."""

    def add(self, groups: list[int]) -> int:
        """These groups of 4 frames are whole: numbers from the medium's first, each once.

        Returns:
            Frames that wait to be used, in memory that goes then; 0 where it stays.
        """


@dataclasses.dataclass(frozen=True)
class _Planned:
    planned: DecodedMedia


@dataclasses.dataclass(frozen=True)
class _Group:
    group: int


@dataclasses.dataclass(frozen=True)
class _Decoded:
    decoded: DecodedMedia


@dataclasses.dataclass(frozen=True)
class _Refused:
    error: ErrorCode
    message: str
    param: str | None
    detail: str = ""


_ANSWER: TypeAdapter[_Decoded | _Refused] = TypeAdapter(_Decoded | _Refused)
_NEWS: TypeAdapter[_Planned | _Group] = TypeAdapter(_Planned | _Group)


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
        self._active = self._waiting = 0  # decoders at work, and requests without one
        self._counting = threading.Lock()
        self._closed = threading.Event()
        self._idle: queue.LifoQueue[WorkerProcess] = queue.LifoQueue()
        on_gpu = self.limits.reader == "nvdec"
        self._media_per_worker = _MEDIA_PER_GPU_WORKER if on_gpu else _MEDIA_PER_WORKER
        program = python or find_python()
        self._forks = ForkServer(program, json.dumps(dataclasses.asdict(self.limits)), on_gpu=on_gpu, closed=self._closed)
        self._workers = [WorkerProcess(self._forks, self._closed) for _ in range(workers)]
        self._renewing = ThreadPoolExecutor(1, "decoder-renewal")
        for worker in self._workers:
            self._idle.put(worker)
        try:
            held = self._forks.start()
            for worker in self._workers:
                worker.start()
            for worker in self._workers:
                worker.wait_ready(Deadline.after(_START_SECONDS))
        except (ServingError, WorkerDiedError, OSError) as error:
            self.close()
            raise RuntimeError(f"a decoder process ({program}) did not start: {error}") from error
        if held.missing and not on_gpu:
            _log.warning("what decodes media is not kept from %s on this machine (see `internvideo doctor`)", held.missing)

    def decode(
        self,
        medium_fd: int,
        request: DecodeRequest,
        buffer: FrameBuffer,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
    ) -> DecodedMedia:
        """Decode one medium and append its frames to the buffer.

        Args:
            medium_fd: The open medium (``Media.fd``).
            request: What to decode.
            buffer: Takes the frames; its count stays as it is if this fails. Not shared with another call at the same time.
            deadline: Ends waiting and decoding early.
            progress: Told before the end what will be decoded and which groups are whole.

        Raises:
            ServingError: INVALID_ARGUMENT (with the reason), INTERNAL (the decoder crashed), DEADLINE_EXCEEDED or CANCELLED.
        """
        deadline = deadline or Deadline()
        message = {
            "kind": request.kind,
            "sampling": dataclasses.asdict(request.sampling),
            "skip_frames": buffer.frame_count,
        }
        worker = self._take(deadline)
        with self._counting:
            self._active += 1
            message["threads"] = max(1, self._threads // self._active)
        answer: dict[str, Any] = {}
        try:
            check_open(self._closed)
            news = _News(progress, partial(self._check, request), request.param)
            answer = self._ask(worker, message, (medium_fd, buffer.fd), deadline, news)
        except ServingError as error:
            if error.code is not ErrorCode.DEADLINE_EXCEEDED or deadline.expired():
                raise
            text = (
                f"decoding took longer than the {self.limits.timeout_s:g} s that the server gives to one medium: "
                "send a shorter or smaller one, or ask for fewer frames"
            )
            param = f"{request.param}.url" if request.param else "url"
            raise ServingError(ErrorCode.INVALID_ARGUMENT, text, param) from None
        except WorkerDiedError as error:
            text = f"the decoder ended unexpectedly ({error}); other requests go on"
            raise ServingError(ErrorCode.INTERNAL, text, request.param) from None
        finally:
            with self._counting:
                self._active -= 1
            self._give_back(worker, failed="decoded" not in answer)
        decoded = self._believed(answer, request, buffer)
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
        self._renewing.shutdown()
        self._forks.close()

    def __enter__(self) -> FrameDecoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _take(self, deadline: Deadline) -> WorkerProcess:
        with self._counting:
            self._waiting += 1
        try:
            while True:
                deadline.check("waiting for a decoder")
                with contextlib.suppress(queue.Empty):
                    return self._idle.get(timeout=POLL_SECONDS)
                check_open(self._closed)
        finally:
            with self._counting:
                self._waiting -= 1

    def _give_back(self, worker: WorkerProcess, *, failed: bool) -> None:
        """For the next medium: as it is, or a new process, which is made while others work."""
        if self._closed.is_set() or not (failed or worker.decoded >= self._media_per_worker):
            self._idle.put(worker)
            return
        self._renewing.submit(self._renew, worker)

    def _renew(self, worker: WorkerProcess) -> None:
        try:
            worker.kill()
            worker.start()
        except (OSError, ServingError, WorkerDiedError):  # shutting down, or no process to be had: the next request tries again
            pass
        finally:
            self._idle.put(worker)

    def _believed(self, answer: object, request: DecodeRequest, buffer: FrameBuffer) -> DecodedMedia:
        """An answer that can be true, for a file may have taken the decoder over.

        Raises:
            ServingError: As the decoder says, or INTERNAL.
        """
        try:
            match _ANSWER.validate_python(answer):
                case _Decoded(decoded):
                    self._check(request, decoded)
                    buffer.check(buffer.frame_count + decoded.frame_count)
                    return decoded
                case _Refused(code, text, param, detail):
                    if detail:
                        _log.warning("a decoder met what it does not foresee: %r", detail)
                    raise ServingError(code, text, ".".join(filter(None, (request.param, param))) or None)
        except ValueError as error:  # pydantic's is one too
            _log.warning("a decoder answered what it should not: %r", error)
            raise ServingError(ErrorCode.INTERNAL, "the decoder answered what it should not", request.param) from None

    def _check(self, request: DecodeRequest, decoded: DecodedMedia) -> None:
        """Raise ValueError where that many frames were not asked for."""
        most = IMAGE_FRAMES if request.kind == "image" else self.limits.max_frames
        if not 0 < decoded.frame_count <= most or len(decoded.indices) != decoded.frame_count:
            raise ValueError(f"{decoded.frame_count} frames")

    def _ask(
        self, worker: WorkerProcess, message: dict[str, Any], fds: tuple[int, ...], deadline: Deadline, news: _News
    ) -> dict[str, Any]:
        """One job."""
        limit = Deadline(min(time.monotonic() + self.limits.timeout_s, deadline.at), deadline.cancelled)
        try:
            worker.start()  # no-op unless it could not be started last time
            worker.wait_ready(limit)
            worker.send(message, fds)
            while news.take(answer := worker.receive(limit)):
                if not worker.has_more():
                    news.tell()
                    if news.ahead > _MOST_AHEAD and not self._waiting:
                        limit.at = min(limit.at + self._rest(worker, deadline, news), deadline.at)
            return answer
        except OSError as error:
            raise WorkerDiedError(f"it cannot be started: {error.strerror}") from None
        except (ServingError, WorkerDiedError):
            worker.kill()  # at once: what nobody wants any more takes no time of others
            raise

    def _rest(self, worker: WorkerProcess, deadline: Deadline, news: _News) -> float:
        """Let the tower use half of what waits for it; the seconds that this took are not the decoder's.

        Not while another medium has no decoder: that one would wait for the tower, too.
        """
        began = time.monotonic()
        with worker.paused(), self._threads_free():
            while news.ahead > _MOST_AHEAD // 2 and not self._waiting:
                check_open(self._closed)
                deadline.check("decoding the media")
                self._closed.wait(_PAUSE_SECONDS)
                news.tell()
        return time.monotonic() - began

    @contextlib.contextmanager
    def _threads_free(self) -> Iterator[None]:
        """For decoders that begin while the context is open."""
        with self._counting:
            self._active -= 1
        try:
            yield
        finally:
            with self._counting:
                self._active += 1


class _News:
    """What a decoder tells before its answer, as far as it can be true."""

    def __init__(self, progress: Progress | None, check: Callable[[DecodedMedia], None], param: str | None) -> None:
        self._progress, self._check, self._param = progress, check, param
        self._planned: DecodedMedia | None = None
        self._seen: set[int] = set()
        self._untold: list[int] = []
        self.ahead = 0

    def tell(self) -> None:
        """Hand on the groups that came since the last time, and ask how many frames wait for their use."""
        if self._progress is not None and self._planned is not None:
            self.ahead = self._progress.add(self._untold)
            self._untold = []

    def take(self, message: dict[str, Any]) -> bool:
        """Whether the message is news, and not the answer.

        Raises:
            ServingError: INTERNAL: it cannot be true.
        """
        if not ("planned" in message or "group" in message):
            return False
        try:
            match _NEWS.validate_python(message):
                case _Planned(planned) if self._planned is None:
                    self._check(planned)
                    self._planned = planned
                    if self._progress is not None:
                        self._progress.plan(planned)
                case _Group(group) if group not in self._seen and 0 <= group < self._most_groups:
                    self._seen.add(group)
                    self._untold.append(group)
                case other:
                    raise ValueError(f"{other}")
        except ValueError as error:
            _log.warning("a decoder told what it should not: %r", error)
            raise ServingError(ErrorCode.INTERNAL, "the decoder answered what it should not", self._param) from None
        return True

    @property
    def _most_groups(self) -> int:
        return 1 if self._planned is None else self._planned.frame_count // FRAMES_PER_GROUP
