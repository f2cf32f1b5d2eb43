"""`serve --detach`, `status` and `stop`, with the real tritonserver and trivial models."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from internvideo_server.launch import LaunchError, chosen, end, living_runs, start, statuses
from internvideo_server.settings import ServeSettings
from tests.launch_lab import Lab
from tests.launch_runs import below, options_of, started, until

pytestmark = pytest.mark.server
CLI = [sys.executable, "-m", "internvideo_client.cli"]


@pytest.fixture(autouse=True)
def detached_runs_end(lab: Lab) -> Iterator[None]:
    yield
    for run in living_runs():  # where a test failed
        end(run, now=True)


def internvideo(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run([*CLI, *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False)


def serve_arguments(lab: Lab, **changes: Any) -> list[str]:
    given = options_of(lab, **changes).items()
    return ["serve", "--detach", *(f"--{name.replace('_', '-')}={value}" for name, value in given)]


def runs_of(shown: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shown.stdout)["runs"]
    return found


def test_a_detached_server_goes_on_is_shown_and_is_stopped(lab: Lab) -> None:
    given = internvideo(*serve_arguments(lab, name="first"))
    lab.note_runs()
    assert given.returncode == 0, given.stderr
    assert "Ready. Ctrl-C, or `internvideo stop first`, stops it." in given.stdout
    log = Path(re.search(r"Its log: (\S+)", given.stdout)[1])  # type: ignore[index]
    assert "Ready." in log.read_text()
    assert log.stat().st_mode & 0o077 == 0

    shown = internvideo("status", "--json")
    (run,) = runs_of(shown)
    assert (shown.returncode, run["status"], run["record"]["name"]) == (0, "serving", "first")
    assert len(run["processes"]) == 5  # triton, three models, the adapter
    assert run["record"]["models"] == ["preprocessing", "tensorrt_llm", "vit"]
    assert run["record"]["urls"]["openai"] in given.stdout
    launcher = psutil.Process(run["record"]["pid"])
    assert os.getsid(launcher.pid) == launcher.pid  # no terminal's end reaches it
    text = internvideo("status").stdout
    text = "".join(text.split("\n"))  # a long path is folded
    for part in ("first", "serving, up 0:0", str(launcher.pid), run["record"]["directory"]):
        assert part in text

    assert internvideo("stop", "first").returncode == 0
    assert not launcher.is_running() or launcher.status() == psutil.STATUS_ZOMBIE  # its parent has gone: init collects it
    gone = internvideo("status")
    assert (gone.returncode, gone.stdout) == (1, "no server runs here\n")


def test_servers_are_told_apart_by_name(lab: Lab) -> None:
    with started(lab, name="one"), started(lab) as second:
        named = {run.name for run in living_runs()}
        assert named == {"one", lab.run_ids[-1]} or named == {"one", lab.run_ids[0]}
        with pytest.raises(LaunchError, match="several servers run here: name one of one, "):
            chosen(None)
        with pytest.raises(LaunchError, match="no server is called two; here are: one, "):
            chosen("two")
        with pytest.raises(LaunchError, match=r"a server called one runs already .*internvideo stop one"):
            start(ServeSettings(**options_of(lab, name="one")))
        assert internvideo(*serve_arguments(lab, name="one")).returncode == 1
        assert [run.record.urls["openai"] for run in statuses()][1] == second.openai_url
        assert internvideo("stop").returncode == 1


def test_a_detached_server_that_cannot_start_tells_why(lab: Lab) -> None:
    lab.break_model("vit")
    given = internvideo(*serve_arguments(lab))
    assert given.returncode == 1
    assert "the tower has no weights" in given.stdout
    assert living_runs() == []


def test_given_up_while_it_starts_nothing_stays(lab: Lab) -> None:
    lab.slow_model("vit")
    with subprocess.Popen([*CLI, *serve_arguments(lab)], stdout=subprocess.DEVNULL) as detaching:
        until(lambda: bool(below("triton_python_backend_stub", detaching.pid)))
        lab.note_runs()
        detaching.send_signal(signal.SIGINT)
        assert detaching.wait(60) == 130


def test_stop_now_waits_for_nothing(lab: Lab) -> None:
    internvideo(*serve_arguments(lab, drain_timeout=600))
    lab.note_runs()
    assert internvideo("stop", "internvideo", "--now").returncode == 0


def test_keys_do_not_stand_in_the_command_line_of_a_detached_server(lab: Lab) -> None:
    assert internvideo(*serve_arguments(lab, api_key="sesame")).returncode == 0
    lab.note_runs()
    [run] = living_runs()
    arguments = psutil.Process(run.pid).cmdline()
    assert "serve" in arguments and "sesame" not in "".join(arguments)
