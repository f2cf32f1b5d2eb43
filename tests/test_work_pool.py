"""Workers behind a Triton model: bounded queue, `stop` by id, one answer for each request, whatever happens."""

from __future__ import annotations

import errno
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from internvideo_server.errors import ErrorCode, ServingError, invalid

PATIENCE_S = 10.0


class Sender:
    """Triton's response sender."""

    def __init__(self) -> None:
        self.responses: list[Any] = []
        self.cancelled = False
        self.done = threading.Event()
        self.broken = False

    def send(self, response: Any, flags: int = 0) -> None:
        self.responses.append((response, flags))
        self.done.set()
        if self.broken:
            raise RuntimeError("no room in the shared memory")

    def is_cancelled(self) -> bool:
        return self.cancelled


class Request:
    def __init__(self, request_id: str, *, stop: bool = False, timings: bool = False, timeout_us: int = 0, **inputs: Any) -> None:
        self.sender, self._id, self._timeout_us = Sender(), request_id, timeout_us
        self.inputs = {"stop": stop, "timings": timings, **inputs}

    def request_id(self) -> str:
        return self._id

    def timeout(self) -> int:
        return self._timeout_us

    def get_response_sender(self) -> Sender:
        return self.sender

    @property
    def answer(self) -> Any:
        """The one response, once it is there: its tensors, or the error's text."""
        assert self.sender.done.wait(PATIENCE_S), "no answer"
        [(response, flags)] = self.sender.responses
        assert flags == 1
        return response.error.text if response.error else response.output_tensors


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package under test, on a stand-in for the module that exists only inside a stub process."""
    triton = ModuleType("triton_python_backend_utils")
    codes = SimpleNamespace(**{str(code): str(code) for code in ErrorCode}, INVALID_ARG="INVALID_ARG")

    def error(text: str, code: str) -> SimpleNamespace:
        return SimpleNamespace(text=text, code=code)

    def response(output_tensors: list[Any] | None = None, error: Any = None) -> SimpleNamespace:
        return SimpleNamespace(output_tensors=output_tensors, error=error)

    def input_by_name(request: Request, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(as_numpy=lambda: np.array([request.inputs[name]])) if name in request.inputs else None

    class MetricFamily:
        COUNTER, GAUGE = "counter", "gauge"

        def __init__(self, *_: Any) -> None:
            pass

        def Metric(self, labels: dict[str, str]) -> SimpleNamespace:
            return SimpleNamespace(increment=lambda value: None, set=lambda value: None)

    class TritonError:
        __new__ = staticmethod(lambda cls, text, code: error(text, code))  # type: ignore[assignment]

    for name in vars(codes):
        setattr(TritonError, name, name)
    triton.__dict__.update(
        TritonError=TritonError,
        InferenceResponse=response,
        Tensor=lambda name, value: (name, value.item()),
        MetricFamily=MetricFamily,
        get_input_tensor_by_name=input_by_name,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    for name in ("", "._finished", "._meter", "._pool", "._parameters"):
        monkeypatch.delitem(sys.modules, f"internvideo_server.triton_model{name}", raising=False)
    import internvideo_server.triton_model

    yield internvideo_server.triton_model
    for name in ("", "._finished", "._meter", "._pool", "._parameters"):
        sys.modules.pop(f"internvideo_server.triton_model{name}", None)


@pytest.fixture
def pool(work: ModuleType) -> Iterator[Callable[..., Any]]:
    """Makes pools, and ends them."""
    pools = []

    def make(handle: Callable[[Any], list[Any]], *, workers: int = 1, max_queue_size: int = 0) -> Any:
        pools.append(work.WorkerPool("lab", handle, workers=workers, max_queue_size=max_queue_size))
        return pools[-1]

    yield make
    for made in pools:
        made.close()


class Handler:
    """Holds its job until it is let go or stopped."""

    def __init__(self) -> None:
        self.began, self.go = threading.Semaphore(0), threading.Event()
        self.seen: list[str] = []

    def __call__(self, job: Any) -> list[Any]:
        self.seen.append(job.request_id)
        self.began.release()
        while not self.go.wait(0.01):
            if job.deadline.cancelled():
                raise ServingError(ErrorCode.CANCELLED, "the request was stopped at work")
        return [job.request_id]


def test_each_request_is_answered_once(pool: Callable[..., Any]) -> None:
    requests = [Request(str(number)) for number in range(20)]
    pool(lambda job: [job.request_id], workers=3).execute(requests)
    assert [request.answer for request in requests] == [[str(number)] for number in range(20)]


def test_errors_keep_their_code_and_the_worker(pool: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    def handle(job: Any) -> list[Any]:
        if job.request_id == "client":
            raise invalid("num_frames must be a multiple of 4, got 3", "messages.0")
        if job.request_id == "server":
            raise KeyError("lost")
        return []

    requests = [Request("client"), Request("server"), Request("fine")]
    pool(handle).execute(requests)
    assert requests[0].answer == "[INVALID_ARGUMENT param=messages.0] num_frames must be a multiple of 4, got 3"
    assert requests[1].answer == "[INTERNAL] KeyError in lab; the server's log holds the reason"
    assert requests[2].answer == []
    assert "request server failed" in caplog.text
    assert "lost" in caplog.text


def test_stop_ends_the_job_at_work(pool: Callable[..., Any]) -> None:
    handler, request, stop = Handler(), Request("a"), Request("a", stop=True)
    lab = pool(handler)
    lab.execute([request])
    assert handler.began.acquire(timeout=PATIENCE_S)
    lab.execute([Request("someone else", stop=True), stop])
    assert stop.answer == []
    assert request.answer == "[CANCELLED] the request was stopped at work"


def test_stop_ends_a_waiting_job_at_once(pool: Callable[..., Any]) -> None:
    handler, first, second = Handler(), Request("a"), Request("b")
    lab = pool(handler)
    lab.execute([first, second])
    assert handler.began.acquire(timeout=PATIENCE_S)
    lab.execute([Request("b", stop=True)])
    assert second.answer == "[CANCELLED] the request was stopped"  # while the only worker is still busy
    handler.go.set()
    assert first.answer == ["a"]
    assert handler.seen == ["a"]


def test_stop_needs_an_id_and_takes_an_unknown_one(pool: Callable[..., Any]) -> None:
    lab = pool(Handler())
    without, unknown = Request("", stop=True), Request("nobody", stop=True)
    lab.execute([without, unknown])
    assert "request ID is not provided" in without.answer
    assert unknown.answer == []


def test_a_cancelled_call_ends_its_job(pool: Callable[..., Any]) -> None:
    handler, request = Handler(), Request("a")
    pool(handler).execute([request])
    assert handler.began.acquire(timeout=PATIENCE_S)
    request.sender.cancelled = True
    assert request.answer == "[CANCELLED] the request was stopped at work"


def test_a_full_queue_is_refused_until_there_is_room(pool: Callable[..., Any]) -> None:
    handler, requests, late = Handler(), [Request(str(number)) for number in range(3)], Request("late")
    lab = pool(handler, workers=1, max_queue_size=2)
    lab.execute([*requests, late])
    assert late.answer == "[RESOURCE_EXHAUSTED] lab has 3 requests at work and waiting, its limit; try again later"
    lab.execute([Request("2", stop=True)])
    assert requests[2].answer == "[CANCELLED] the request was stopped"
    again = Request("again")
    lab.execute([again])
    handler.go.set()
    assert again.answer == ["again"]


def test_an_answer_that_cannot_be_sent_does_not_cost_the_worker(
    pool: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    broken, fine = Request("broken"), Request("fine")
    broken.sender.broken = True
    lab = pool(lambda job: [])
    lab.execute([broken, fine])
    assert fine.answer == []
    assert "request broken could not be answered" in caplog.text


def test_metrics_that_cannot_be_shown_cost_neither_the_answer_nor_the_worker(
    pool: Callable[..., Any], work: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shown, room = [], False

    def increment(value: float) -> None:
        if not room:
            raise RuntimeError("no room in the shared memory")
        shown.append(value)

    monkeypatch.setattr(
        sys.modules["triton_python_backend_utils"].MetricFamily,
        "Metric",
        lambda self, labels: SimpleNamespace(increment=increment, set=lambda value: None),
    )
    lab = pool(lambda job: [])
    requests = [Request("a"), Request("b")]
    lab.execute(requests[:1])
    assert requests[0].answer == []
    room = True
    lab.execute(requests[1:])
    assert requests[1].answer == []
    lab.close()
    assert len(shown) >= 2
    assert "metrics could not be shown" in caplog.text


@pytest.mark.parametrize("broken", [False, True])
def test_what_an_answer_is_made_of_is_used_again_only_when_it_is_sent(pool: Callable[..., Any], broken: bool) -> None:
    request, responses_then = Request("a"), []
    request.sender.broken = broken

    def handle(job: Any) -> list[Any]:
        job.until_answered.callback(lambda: responses_then.append(len(request.sender.responses)))
        return []

    lab = pool(handle)
    lab.execute([request])
    assert request.sender.done.wait(PATIENCE_S)
    lab.close()
    assert responses_then == [1 + broken]  # one that could not be sent is followed by an error, which needs less room


@pytest.mark.parametrize(
    ("fault", "lacking"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "open files (ulimit -n)"),
        (OSError(errno.ENOSPC, "No space left on device"), "room on a disk or in /dev/shm"),
        (MemoryError(), "memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("can't start new thread"), "threads (ulimit -u)"),
        (RuntimeError("Failed to increase the shared memory pool size for key 'x'"), "room in /dev/shm (--shm-size)"),
    ],
)
def test_a_host_that_is_short_of_something_is_unavailable_and_something_is_given_back(
    work: ModuleType, fault: Exception, lacking: str
) -> None:
    def handle(job: Any) -> list[Any]:
        raise fault

    given_back: list[bool] = []
    lab = work.WorkerPool("lab", handle, workers=1, max_queue_size=0, on_shortage=lambda: given_back.append(True))
    request = Request("a")
    lab.execute([request])
    assert request.answer == f"[UNAVAILABLE] the server is short of {lacking}; try again in a moment"
    assert given_back == [True]
    lab.close()


def test_a_refused_request_is_told_of_before_its_answer(pool: Callable[..., Any], work: ModuleType) -> None:
    handler, refused = Handler(), []
    lab = work.WorkerPool(
        "lab",
        handler,
        workers=1,
        max_queue_size=1,
        on_refused=lambda job: refused.append((job.request_id, job.request is not None)),
    )
    lab.execute([Request("0"), Request("1"), Request("2")])
    assert refused == [("2", True)]
    lab.close()


def test_close_ends_what_is_at_work_and_what_waits(pool: Callable[..., Any]) -> None:
    handler, requests = Handler(), [Request("a"), Request("b")]
    lab = pool(handler)
    lab.execute(requests)
    assert handler.began.acquire(timeout=PATIENCE_S)
    lab.close()
    assert [request.answer for request in requests] == [
        "[CANCELLED] the request was stopped at work",
        "[CANCELLED] the request was cancelled while waiting for lab",
    ]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lab-")]


@pytest.mark.parametrize(
    ("timeout_us", "deadline_in", "timeout_s", "ends_in"),
    [
        (0, None, 7.0, 7.0),
        (3_000_000, None, 7.0, 3.0),
        (9_000_000, None, 7.0, 7.0),
        (3_000_000, 2.0, 7.0, 2.0),
        (0, 8.0, 7.0, 7.0),
    ],
)
def test_a_request_ends_by_the_earliest_of_its_deadlines(
    work: ModuleType, timeout_us: int, deadline_in: float | None, timeout_s: float, ends_in: float
) -> None:
    now = time.monotonic()
    given = {} if deadline_in is None else {"deadline": now + deadline_in}
    job = work.Job(Request("a", timeout_us=timeout_us, **given), timeout_s)
    assert job.deadline.at == pytest.approx((now if ends_in == deadline_in else job.arrived) + ends_in)


def test_a_stop_is_told_by_its_id(work: ModuleType) -> None:
    stopped: list[str] = []
    lab = work.WorkerPool("lab", Handler(), workers=1, max_queue_size=0, on_stop=stopped.append)
    lab.execute([Request("a", stop=True)])
    lab.close()
    assert stopped == ["a"]


def test_a_finished_request_can_be_asked_what_it_has_cost(work: ModuleType, pool: Callable[..., Any]) -> None:
    meter = work.TritonMeter("preprocessing")

    def report(job: Any) -> str:
        return json.dumps(job.figures)

    def handle(job: Any) -> list[Any]:
        meter.add("internvideo_decode_seconds_total", 0.5)
        meter.add("internvideo_frames_decoded_total", len(job.request_id))
        return []

    lab = work.WorkerPool("preprocessing", handle, workers=2, max_queue_size=0, meter=meter, report=report)
    requests = [Request("one"), Request("three"), Request("")]
    lab.execute(requests)
    assert [request.answer for request in requests] == [[], [], []]
    questions = [Request(name, timings=True) for name in ("one", "three", "nobody", "")]
    lab.execute(questions)
    lab.close()
    answers = [json.loads(question.answer[0][1]) for question in questions]
    assert [answer.get("frames_decoded") for answer in answers] == [3, 5, None, None]
    assert set(answers[0]) == {"decode_seconds", "frames_decoded", "queue_seconds", "work_seconds"}
    assert answers[0]["decode_seconds"] == 0.5


def test_only_the_last_finished_requests_are_kept(work: ModuleType) -> None:
    finished = sys.modules["internvideo_server.triton_model._finished"].Finished()
    for number in range(1030):
        finished.put(str(number), f'{{"work_seconds": {number}}}')
    assert [finished.get(name) for name in ("5", "6", "1029")] == ["{}", '{"work_seconds": 6}', '{"work_seconds": 1029}']


def test_parameters_are_the_strings_of_the_configuration(work: ModuleType) -> None:
    config = '{"parameters": {"device": {"string_value": "cpu"}, "dtype": {"string_value": "float32"}}}'
    assert work.parameters({"model_config": config}) == {"device": "cpu", "dtype": "float32"}
    assert work.parameters({"model_config": "{}"}) == {}
