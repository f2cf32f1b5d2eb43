"""What the adapter makes of the launcher's news: health, who is told, who is asked again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from internvideo_server.launch._run_state import STATE_FILE, SUSPECT_FILE, RunState
from tests.adapter_process import AdapterProcess
from tests.fake_triton import FakeTriton, Step, piece, running
from tests.test_adapter_faults import CHAIN, PATIENCE_S, QUESTION, eventually, post

ANSWER = [Step([piece("Hello")])]
SILENCE = [Step(silent=True)]
UNHEALTHY = [Step(error="in ensemble 'x', Stub process 'vit_0_0' is not healthy.")]


@pytest.fixture
def state(tmp_path: Path) -> RunState:
    """The launcher's pen."""
    state = RunState(tmp_path)
    state.set_status("serving")
    return state


@pytest.fixture
def url(fake: FakeTriton, tmp_path: Path, state: RunState) -> Iterator[str]:
    with running(fake, tmp_path, run_state=tmp_path / STATE_FILE) as base:
        yield base


@pytest.fixture
def asked(url: str) -> Iterator[Future[httpx2.Response]]:
    """A question under way."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(post, url, QUESTION)


def health(url: str, kind: str) -> int:
    return httpx2.get(f"{url}/health/{kind}").status_code


def dies_and_comes_back(state: RunState, name: str) -> None:
    state.died(name, "the test says so")
    state.back(name)


def refused(response: httpx2.Response) -> dict[str, Any]:
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    error: dict[str, Any] = response.json()["error"]
    return error


def test_health_and_new_questions_follow_the_launcher(url: str, state: RunState) -> None:
    assert (health(url, "ready"), health(url, "live")) == (200, 200)
    state.died("vit", "signal 9")
    assert eventually(lambda: health(url, "ready") == 503)
    assert health(url, "live") == 200
    assert refused(post(url, QUESTION))["message"] == "the server is recovering"
    state.back("vit")
    assert eventually(lambda: health(url, "ready") == 200)
    state.set_status("draining")
    assert eventually(lambda: health(url, "ready") == 503)
    assert health(url, "live") == 200
    state.set_status("failed")
    assert eventually(lambda: health(url, "live") == 503)


def test_a_question_whose_model_died_is_asked_again(fake: FakeTriton, state: RunState, asked: Future[httpx2.Response]) -> None:
    fake.first_scripts, fake.script = [SILENCE], ANSWER
    assert fake.reached.wait(PATIENCE_S)
    dies_and_comes_back(state, "vit")
    assert asked.result(PATIENCE_S).json()["choices"][0]["message"]["content"] == "Hello"
    assert len({request["id"] for request in fake.requests}) == 2


def test_a_question_that_may_be_what_kills_is_asked_again_no_more_than_once(
    fake: FakeTriton, state: RunState, asked: Future[httpx2.Response]
) -> None:
    fake.script = SILENCE
    for number in (1, 2):
        assert eventually(lambda: len(fake.requests) == number)  # noqa: B023
        dies_and_comes_back(state, "preprocessing")
    assert "died while it worked on this request" in refused(asked.result(PATIENCE_S))["message"]
    assert len(fake.requests) == 2


def test_a_process_that_triton_calls_unhealthy_is_suspected_and_asked_until_it_answers(
    fake: FakeTriton, tmp_path: Path, asked: Future[httpx2.Response]
) -> None:
    fake.first_scripts, fake.script = [UNHEALTHY, UNHEALTHY], ANSWER
    assert asked.result(PATIENCE_S).status_code == 200
    assert len(fake.requests) == 3
    assert (tmp_path / SUSPECT_FILE).exists()


def test_an_answer_that_has_begun_ends_with_an_event(fake: FakeTriton, url: str, state: RunState) -> None:
    fake.script = [*ANSWER, *SILENCE]
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=QUESTION | {"stream": True}, timeout=PATIENCE_S) as stream:
        lines = stream.iter_lines()
        assert "Hello" in next(line for line in lines if "Hello" in line)
        dies_and_comes_back(state, "tensorrt_llm")
        *_, error, done = [line for line in lines if line]
    assert "unavailable" in error
    assert done == "data: [DONE]"
    assert len(fake.requests) == 1


def test_what_does_not_end_in_the_drain_is_told_and_stopped_in_every_model(fake: FakeTriton, tmp_path: Path) -> None:
    fake.script = [*ANSWER, *SILENCE]
    with (
        running(fake, tmp_path),
        AdapterProcess(tmp_path / "adapter", "--drain-timeout=0.2", triton=f"127.0.0.1:{fake.port}") as adapter,
    ):
        url = f"http://127.0.0.1:{adapter.port}/v1/chat/completions"
        with httpx2.stream("POST", url, json=QUESTION | {"stream": True}, timeout=PATIENCE_S) as stream:
            lines = stream.iter_lines()
            next(lines)
            adapter.process.terminate()
            *_, error, done = [line for line in lines if line]
        assert "the server is stopping" in error
        assert done == "data: [DONE]"
        assert eventually(lambda: {model for model, _ in fake.stops} == CHAIN)
