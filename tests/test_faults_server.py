"""A real server whose processes are killed while it works: nothing is lost in silence, and it goes on."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from internvideo_server.launch import RunningServer, _supervisor, start, statuses
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS, answer, body, client, text_part, until, video_part
from tests.launch_runs import state_of

pytestmark = pytest.mark.server
SLOW = 180.0  # a start on a busy machine
PROCESS = {
    "preprocessing": "preprocessing_0_0",
    "vit": "vit_0_0",
    "tensorrt_llm": "tensorrt_llm_0_0",
    "tritonserver": "bin/tritonserver",
    "adapter": "internvideo_client.adapter",
}


@pytest.fixture(scope="module")
def mortal(checkpoint: Path, media_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of this module's own."""
    options = ServeSettings(
        checkpoint=checkpoint,
        device="cpu",
        allowed_local_media_path=(media_dir,),
        run_directory=tmp_path_factory.mktemp("mortal"),
        max_restarts=100,
        **FREE_PORTS,
    )
    with start(options) as running:
        yield running


@pytest.fixture
def http(mortal: RunningServer) -> Iterator[httpx2.Client]:
    with client(mortal.adapter_url) as http:
        until(lambda: serves(mortal, http), "it was not ready", SLOW)
        yield http
        until(lambda: serves(mortal, http), "it did not come back", SLOW)


def process_of(server: RunningServer, victim: str) -> psutil.Process:
    """The run's process of a program or a model."""
    name = PROCESS[victim]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(server.repository) in part for part in process.cmdline()):
                run_id = process.environ()[_supervisor.RUN_MARK]
                break
    for pid in list(_supervisor.marked_processes(run_id)):
        with contextlib.suppress(psutil.Error):
            if any(name in part for part in psutil.Process(pid).cmdline()):
                return psutil.Process(pid)
    raise AssertionError(f"there is no {name}")


def serves(server: RunningServer, http: httpx2.Client) -> bool:
    """Whether launcher and adapter both say so: each hears of the other's news a moment later."""
    return state_of(server)["status"] == "serving" and http.get("/health/ready").status_code == 200


@contextlib.contextmanager
def dying(server: RunningServer, victim: str) -> Iterator[psutil.Process]:
    """The process to kill; at the end the launcher has written its death down, so that nobody takes the old state for the new.

    One that stood still under traffic may have taken tritonserver with it, which is then the death that is told.
    """
    before = state_of(server)["deaths"]
    yield process_of(server, victim)

    def noticed() -> bool:
        now = state_of(server)["deaths"]
        return any(now.get(name, 0) > before.get(name, 0) for name in (victim, "tritonserver"))

    until(noticed, f"the death of {victim} was not noticed", SLOW)


@pytest.mark.parametrize("victim", ["tensorrt_llm", "tritonserver"])
def test_a_stream_whose_engine_dies_is_told_at_once(mortal: RunningServer, http: httpx2.Client, victim: str) -> None:
    request = body(text_part("Tell me a story."), max_tokens=6000, min_tokens=6000, stream=True)
    events: list[str] = []
    with dying(mortal, victim) as process, http.stream("POST", "/v1/chat/completions", json=request) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                if len(events) == 5:
                    process.kill()
    assert events[-1] == "[DONE]"
    error = json.loads(events[-2])["error"]
    assert error["code"] == "unavailable"
    assert error["type"] == "server_error"


@pytest.mark.parametrize("victim", ["preprocessing", "vit", "tritonserver"])
def test_a_question_without_an_answer_yet_is_asked_again(
    mortal: RunningServer, http: httpx2.Client, media_dir: Path, victim: str
) -> None:
    video = video_part(media_dir / "v7.mp4", num_frames=64)
    expected = answer(http, video, max_tokens=8)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(answer(http, video, max_tokens=8)))
    with dying(mortal, victim) as process, client(mortal.adapter_url) as other:
        process.suspend()  # so that the question is under way when it dies
        asking.start()
        until(lambda: "internvideo_requests_in_flight 1.0" in other.get("/metrics").text, "it was not asked")
        process.kill()
    asking.join(SLOW)
    assert answers == [expected]


def test_while_a_model_is_dead_new_questions_are_told_to_come_again(mortal: RunningServer, http: httpx2.Client) -> None:
    with dying(mortal, "vit") as process:
        process.kill()
        until(lambda: http.get("/health/ready").status_code == 503, "it was still ready", SLOW)
        refused = http.post("/v1/chat/completions", json=body(text_part("hi"), max_tokens=1))
    if refused.status_code != 200:  # it can be back already
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert http.get("/health/live").status_code == 200
    until(lambda: serves(mortal, http), "it did not come back", SLOW)
    assert answer(http, text_part("hi"), max_tokens=1) is not None


def test_a_killed_adapter_is_back_and_answers(mortal: RunningServer, http: httpx2.Client) -> None:
    with dying(mortal, "adapter") as process:
        process.kill()
    until(lambda: state_of(mortal)["status"] == "serving", "it did not come back", SLOW)
    with client(mortal.adapter_url) as again:
        assert answer(again, text_part("hi"), max_tokens=1) is not None
        assert "text/html" in again.get("/", follow_redirects=True).headers["content-type"]  # the page, which the adapter serves


@pytest.mark.parametrize("victim", ["preprocessing", "tensorrt_llm", "tritonserver"])
def test_what_stood_still_for_two_seconds_costs_no_answer(
    mortal: RunningServer, http: httpx2.Client, media_dir: Path, victim: str
) -> None:
    """Triton 2.51 ends by signal 6 when a model's process did so while requests came; then it is started again."""
    video = video_part(media_dir / "v7.mp4", num_frames=16)
    expected, answers = answer(http, video, max_tokens=8), []
    asking = [threading.Thread(target=lambda: answers.append(answer(http, video, max_tokens=8))) for _ in range(4)]
    process = process_of(mortal, victim)
    process.suspend()
    for thread in asking:
        thread.start()
    threading.Event().wait(2.0)  # the fault itself
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()
    for thread in asking:
        thread.join(SLOW)
    assert answers == [expected] * len(asking)


def test_a_process_without_descriptors_is_unavailable_and_goes_on(
    mortal: RunningServer, http: httpx2.Client, media_dir: Path
) -> None:
    question = body(video_part(media_dir / "v7.mp4", num_frames=8), max_tokens=8)
    expected = http.post("/v1/chat/completions", json=question).json()["choices"]
    before, process = state_of(mortal)["deaths"], process_of(mortal, "preprocessing")
    limits = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
    refused = http.post("/v1/chat/completions", json=question)
    process.rlimit(psutil.RLIMIT_NOFILE, limits)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert "short of open files" in refused.json()["error"]["message"]
    assert http.post("/v1/chat/completions", json=question).json()["choices"] == expected
    assert state_of(mortal)["deaths"] == before


def test_status_counts_what_was_asked(mortal: RunningServer, http: httpx2.Client) -> None:
    def requests() -> int:
        [run] = [run for run in statuses() if run.record.urls.get("openai") == mortal.openai_url]
        assert run.status == "serving"
        return run.requests or 0

    before = requests()
    for _ in range(3):
        answer(http, text_part("hi"), max_tokens=1)
    until(lambda: requests() == before + 3, "it was not counted")


def test_models_write_logs_of_their_own(mortal: RunningServer) -> None:
    directory = mortal.repository.parent
    for model in ("preprocessing", "vit", "tensorrt_llm"):
        assert (directory / f"{model}.log").stat().st_mode & 0o777 == 0o600
