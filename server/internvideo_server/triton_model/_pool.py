"""Worker threads behind a Triton Python model, with a bounded queue, `stop` and `timings` by request id.

Triton passes a cancelled call on to a model that is called alone, but not to a running step of an ensemble (seen with 2.51).
So every model of the chain takes a request with ``stop`` = true and the id of the work to end, as NVIDIA's backend does. For
that, ``execute`` must return while work is under way: the answer is sent later through the request's response sender.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from internvideo_server.deadline import POLL_SECONDS, Deadline
from internvideo_server.errors import ErrorCode, ServingError, shortage

from ._finished import Finished
from ._meter import TritonMeter

_log = logging.getLogger(__name__)


class Job:
    """One request at work.

    Args:
        request: The Triton request. Its tensors are dropped before the answer is sent: a view of them that is still
            referenced then keeps the stub from ending.
        timeout_s: Longest time for it, in seconds; the request's own `timeout` and `deadline` may be shorter.

    Attributes:
        arrived: When it came, in seconds of ``time.monotonic()``.
        deadline: Its latest end, and whether anybody still waits: `stop` came, or a direct call was cancelled.
        figures: What its work adds to the meter, short name -> sum so far.
        notes: What its work leaves for its report.
        until_answered: Closed when the answer has been sent: what the answer's tensors are made of may be used again then.
    """

    def __init__(self, request: Any, timeout_s: float = math.inf) -> None:
        self.arrived = time.monotonic()
        at = self.arrived + timeout_s
        if own := request.timeout():  # microseconds, 0: none
            at = min(at, self.arrived + own / 1e6)
        given = pb_utils.get_input_tensor_by_name(request, "deadline")  # what an earlier model of the chain made of it
        if given is not None:
            at = min(at, float(given.as_numpy().item()))
        self.deadline = Deadline(at, self._call_cancelled)
        self.request_id: str = request.request_id()
        self.request: Any = request
        self.figures: dict[str, float] = {}
        self.notes: dict[str, Any] = {}
        self.until_answered = ExitStack()
        self._sender: Any = request.get_response_sender()
        self._asking = threading.Lock()
        self._next_check = 0.0

    def _call_cancelled(self) -> bool:
        with self._asking:
            if time.monotonic() < self._next_check or self.request is None:  # an answered request is Triton's no more
                return False
            self._next_check = time.monotonic() + POLL_SECONDS
            return bool(self._sender.is_cancelled())

    def account(self) -> dict[str, float]:
        """`figures`, and when it came and is done: ``began_at``, ``ended_at`` (now), seconds of ``time.monotonic()``."""
        return {**self.figures, "began_at": self.arrived, "ended_at": time.monotonic()}

    def answer(self, tensors: list[Any]) -> None:
        """Send the one response."""
        self._respond(pb_utils.InferenceResponse(output_tensors=tensors))

    def fail(self, error: ServingError) -> None:
        """Send the error as the one response."""
        self._respond(pb_utils.InferenceResponse(error=pb_utils.TritonError(error.text, _triton_code(error.code))))

    def _respond(self, response: Any) -> None:
        with self._asking:
            self.request = None
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class WorkerPool:
    """Runs ``handle`` for each request on one of ``workers`` threads and answers with what it returns.

    Args:
        name: Of the model, for threads and messages.
        handle: Job -> output tensors. May raise ServingError; anything else is answered as INTERNAL and logged.
        workers: Requests at work at once.
        max_queue_size: Requests that may wait beside them; 0 = no limit.
        timeout_s: Longest time for a request, waiting included.
        meter: Counts the seconds of waiting and of work.
        on_stop: Told the request id of each `stop`.
        on_shortage: Told when a request failed for want of open files, memory or room.
        on_refused: Told each request that finds the queue full, before it is answered.
        report: Job -> what a `timings` request with its id is told, asked before the answer is sent; None: nothing is.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Job], list[Any]],
        *,
        workers: int,
        max_queue_size: int,
        timeout_s: float = math.inf,
        meter: TritonMeter | None = None,
        on_stop: Callable[[str], None] | None = None,
        on_refused: Callable[[Job], None] | None = None,
        on_shortage: Callable[[], None] | None = None,
        report: Callable[[Job], str] | None = None,
    ) -> None:
        self._name, self._handle = name, handle
        self._limit = max_queue_size + workers if max_queue_size else 0
        self._changed = threading.Condition()  # held to change what follows
        self._waiting: deque[Job] = deque()
        self._working: set[Job] = set()
        self._closing = False
        self._on_shortage = on_shortage
        self._timeout_s, self._on_stop, self._on_refused, self._report = timeout_s, on_stop, on_refused, report
        self._meter = meter or TritonMeter(name)  # Triton's own statistics see only the hand-over to these threads
        self._finished = Finished()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def execute(self, requests: list[Any]) -> None:
        """The body of a model's ``execute``: take each request, end the one that a `stop` request names, or tell what the one
        that a `timings` request names has cost.
        """
        for request in requests:
            job = Job(request, self._timeout_s)
            if _is_true(request, "stop"):
                self._stop(job)
            elif _is_true(request, "timings"):
                job.answer([pb_utils.Tensor("timings", np.array([[self._finished.get(job.request_id)]], np.object_))])
            else:
                self._submit(job)

    def close(self) -> None:
        """End the work under way and the threads."""
        with self._changed:
            self._closing = True
            for job in (*self._waiting, *self._working):
                job.deadline.cancel()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _stop(self, stop: Job) -> None:
        if not stop.request_id:
            stop.fail(ServingError(ErrorCode.INVALID_ARGUMENT, "Trying to stop a request but request ID is not provided"))
            return
        with self._changed:
            ended = [job for job in self._waiting if job.request_id == stop.request_id]
            for job in ended:
                self._waiting.remove(job)
            for job in self._working:
                if job.request_id == stop.request_id:
                    job.deadline.cancel()
        if self._on_stop is not None:
            self._on_stop(stop.request_id)
        for job in ended:  # no worker need get round to them
            job.fail(_stopped())
        stop.answer([])  # an answer of the FINAL flag alone leaves Triton 2.51 unable to end

    def _submit(self, job: Job) -> None:
        with self._changed:
            full = self._limit and len(self._waiting) + len(self._working) >= self._limit
            if not full:
                self._waiting.append(job)
                self._changed.notify()
        if full:
            if self._on_refused is not None:
                self._on_refused(job)
            text = f"{self._name} has {self._limit} requests at work and waiting, its limit; try again later"
            job.fail(ServingError(ErrorCode.RESOURCE_EXHAUSTED, text))

    def _work(self) -> None:
        while (job := self._next()) is not None:
            with self._meter.tally() as job.figures:
                tensors, error = self._result(job)
            if self._report is not None:
                self._finished.put(job.request_id, self._report(job))
            self._meter.publish()
            with self._changed:
                self._working.discard(job)
            try:
                if error is not None:
                    job.fail(error)
                else:
                    job.answer(tensors)
            except Exception:  # no room in the shared memory, say: an error takes less of it than tensors
                _log.exception("%s: request %s could not be answered", self._name, job.request_id)
                with contextlib.suppress(Exception):
                    job.fail(ServingError(ErrorCode.UNAVAILABLE, "the server has no room for the answer; try again in a moment"))
            del tensors, error
            job.until_answered.close()
            self._meter.publish()
            del job

    def _result(self, job: Job) -> tuple[list[Any], ServingError | None]:
        began = time.monotonic()
        self._meter.add("internvideo_queue_seconds_total", began - job.arrived, model=self._name)
        try:
            job.deadline.check(f"waiting for {self._name}")
            return self._handle(job), None
        except ServingError as error:
            # Without its traceback: the frames hold the request's tensors.
            return [], ServingError(error.code, error.message, error.param)
        except Exception as error:  # a fault of this request must not end the worker
            _log.exception("%s: request %s failed", self._name, job.request_id)
            if short := shortage(error):
                if self._on_shortage is not None:
                    self._on_shortage()
                return [], short
            # Its words stay in the log: they may name paths and internals.
            text = f"{type(error).__name__} in {self._name}; the server's log holds the reason"
            return [], ServingError(ErrorCode.INTERNAL, text)
        finally:
            self._meter.add("internvideo_work_seconds_total", time.monotonic() - began, model=self._name)

    def _next(self) -> Job | None:
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            job = self._waiting.popleft()
            self._working.add(job)
            return job


def _is_true(request: Any, name: str) -> bool:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return tensor is not None and bool(tensor.as_numpy().any())


def _stopped() -> ServingError:
    return ServingError(ErrorCode.CANCELLED, "the request was stopped")


def _triton_code(code: ErrorCode) -> Any:
    # TritonError knows fewer codes than gRPC; the text carries ours.
    names = {
        ErrorCode.INVALID_ARGUMENT: "INVALID_ARG",
        ErrorCode.PERMISSION_DENIED: "INVALID_ARG",
        ErrorCode.RESOURCE_EXHAUSTED: "UNAVAILABLE",
        ErrorCode.DEADLINE_EXCEEDED: "UNAVAILABLE",
    }
    return getattr(pb_utils.TritonError, names.get(code, str(code)))
