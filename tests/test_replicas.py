"""`serve --replicas`: several servers started, shown and ended as one, with the real tritonserver, trivial models and HAProxy."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from internvideo_server.launch import RunStatus, chosen, end, living_runs, statuses
from tests.launch_lab import Lab
from tests.launch_runs import Serving, answers, below, gone, laboratory, until
from tests.router_lab import needs_haproxy
from tests.test_detached import internvideo, serve_arguments

pytestmark = pytest.mark.server


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    needs_haproxy()
    # The path of HAProxy's socket is bounded, pytest's folders are deep.
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/tmp") as short, laboratory(Path(short), monkeypatch) as lab:
        yield lab
        for run in living_runs():  # where a test failed
            end(run, now=True)


def group(lab: Lab, **changes: Any) -> Serving:
    """Two replicas that serve."""
    serving = Serving(lab, replicas="2", name="g", **changes)
    serving.wait_for("Ready.")
    return serving


def status(name: str) -> RunStatus:
    return next(each for each in statuses() if each.record.name == name)


def launcher(name: str) -> psutil.Process:
    return psutil.Process(status(name).record.pid)


def test_a_detached_group_is_shown_with_its_replicas_and_stopped_as_one(lab: Lab) -> None:
    given = internvideo(*serve_arguments(lab, name="g", replicas=2))
    lab.note_runs()
    assert given.returncode == 0, given.stdout + given.stderr
    shown = internvideo("status", "--json")
    runs = {run["record"]["name"]: run for run in json.loads(shown.stdout)["runs"]}
    assert shown.returncode == 0 and set(runs) == {"g", "g-0", "g-1"}
    url = runs["g"]["record"]["urls"]["openai"]
    assert url in given.stdout and answers(url)
    assert len({run["record"]["urls"]["openai"] for run in runs.values()}) == 3
    assert [runs[name]["record"]["group"] for name in ("g-0", "g-1")] == [runs["g"]["record"]["run_id"]] * 2
    assert internvideo("stop").returncode == 0  # the whole is meant
    assert living_runs() == []


def test_a_replica_that_gives_up_is_told_and_the_other_goes_on_until_it_is_the_last(lab: Lab) -> None:
    serving = group(lab, max_restarts=0)
    first, second = (status(f"g-{place}").record for place in range(2))
    os.kill(below("tritonserver", first.pid)[0].pid, signal.SIGKILL)
    until(lambda: status("g").status == "degraded")
    assert status("g").down == ("replica-0",)
    until(lambda: "replica-0 ended with exit code 3, its log tells more; replica-1 go on" in serving.errors)
    assert answers(status("g").record.urls["openai"])
    os.kill(below("tritonserver", second.pid)[0].pid, signal.SIGKILL)
    code, errors = serving.finish()
    assert code == 3 and "replica-1 ended with exit code 3, and no replica is left; everything was stopped" in errors


@pytest.mark.ci
def test_haproxy_that_was_killed_is_started_again_and_the_group_goes_on(lab: Lab) -> None:
    serving = group(lab)
    haproxy = below("haproxy", serving.process.pid)[0]
    haproxy.kill()
    until(lambda: "haproxy was ended by signal 9 (SIGKILL); it is started again" in serving.errors)
    until(lambda: answers(chosen("g").urls["openai"]))
    assert serving.end(signal.SIGTERM)[0] == 0


@pytest.mark.ci
@pytest.mark.parametrize("whose", ["launcher", "supervisor"])
def test_a_group_whose_launcher_or_supervisor_is_killed_leaves_nothing(lab: Lab, whose: str) -> None:
    serving = group(lab)
    pids = {"launcher": serving.process.pid, "supervisor": below("_supervisor.py", serving.process.pid)[0].pid}
    os.kill(pids[whose], signal.SIGKILL)
    assert serving.finish()[0] == (-signal.SIGKILL if whose == "launcher" else 3)
    until(lambda: gone(lab))


@pytest.mark.ci
def test_a_group_that_cannot_start_tells_why(lab: Lab) -> None:
    lab.break_model("vit")
    serving = Serving(lab, replicas="2")
    code, errors = serving.finish()
    lab.note_runs()
    assert code == 1 and "the tower has no weights" in errors
    assert living_runs() == []


@pytest.mark.ci
def test_given_up_while_it_starts_nothing_stays(lab: Lab) -> None:
    lab.slow_model("vit")
    serving = Serving(lab, replicas="2")
    until(lambda: len(below("triton_python_backend_stub", serving.process.pid)) > 3)
    lab.note_runs()
    assert serving.end(signal.SIGINT)[0] == 0


def test_without_haproxy_it_says_how_to_get_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAPROXY", "/nowhere/haproxy")
    code, errors = Serving(lab, replicas="2").finish()
    assert code == 1 and "$HAPROXY is /nowhere/haproxy, which is not an executable file" in errors


def test_auto_without_a_gpu_is_one_server_and_says_so(lab: Lab) -> None:
    serving = Serving(lab, replicas="auto")
    serving.wait_for("--replicas auto: one server, there are no GPUs for more")
    serving.wait_for("Ready.")
    assert len(living_runs()) == 1
    assert serving.end(signal.SIGTERM)[0] == 0
