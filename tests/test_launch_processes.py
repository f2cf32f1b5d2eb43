"""Starting, stopping and dying, with the real tritonserver and trivial models: nothing of a run may outlive it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from internvideo_server.launch import LaunchError, RunningServer, ServeOptions, _keeper, find_tritonserver, start
from internvideo_server.launch._ports import resolve_ports
from internvideo_server.launch._processes import Ended
from tests.launch_lab import Lab

pytestmark = pytest.mark.server

SERVE = """
import json, sys
from pathlib import Path
from internvideo_server.launch import ServeOptions, serve
paths = ("checkpoint", "engine", "run_directory")
options = json.loads(sys.argv[1])
sys.exit(serve(ServeOptions(**{key: Path(value) if key in paths else value for key, value in options.items()})))
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(tmp_path)
    monkeypatch.setenv("INTERNVIDEO_HOME", str(lab.home))
    monkeypatch.setenv("INTERNVIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(lab.python_path))
    # Runs of other tests on this machine are not looked at, and not swept.
    runs = tmp_path / "runs"
    runs.mkdir()
    monkeypatch.setenv("TMPDIR", str(runs))
    monkeypatch.setattr(tempfile, "tempdir", str(runs))
    return lab


@pytest.fixture(autouse=True)
def nothing_is_left(lab: Lab) -> Iterator[None]:
    """After each test: no process, no segment, no directory of any of its runs."""
    began = time.time()
    yield
    seen = {run_id for run_id in lab.run_ids if list(_keeper.marked_processes(run_id))}
    assert seen == set()
    for run_id in lab.run_ids:
        assert list(Path("/dev/shm").glob(f"{_keeper.shm_prefix(run_id)}*")) == []
    assert list(Path(tempfile.gettempdir()).glob("internvideo-*")) == []
    if not list(_keeper._tritonserver_starts()):  # the directories of another living server look the same
        assert [path for path in Path("/tmp").glob("python_env_*") if path.stat().st_mtime >= began] == []


def options_of(lab: Lab, **changes: Any) -> dict[str, Any]:
    ports = {f"{name}port": 0 for name in ("", "triton_http_", "triton_grpc_", "triton_metrics_")}
    return {"checkpoint": lab.checkpoint, "engine": lab.engine, "device": "cpu", **ports, **changes}


def started(lab: Lab, **changes: Any) -> RunningServer:
    server = start(ServeOptions(**options_of(lab, **changes)))
    lab.note_runs()
    return server


class Serving:
    """``serve`` in a process of its own (the launcher), as the CLI runs it."""

    def __init__(self, lab: Lab, **changes: Any) -> None:
        options = {key: str(value) if isinstance(value, Path) else value for key, value in options_of(lab, **changes).items()}
        self.lab = lab
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def wait_for(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                self.lab.note_runs()
                return
        raise AssertionError(f"{text!r} never came: {self.process.stderr.read() if self.process.stderr else ''}")

    def end(self, signum: int) -> tuple[int, str]:
        os.kill(self.process.pid, signum)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


def below(name: str, above: int) -> list[psutil.Process]:
    """The descendants of a process that have ``name`` in their command line."""
    found = []
    for process in psutil.Process(above).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(name in part for part in process.cmdline()[:5]):
                found.append(process)
    return found


def of_run(lab: Lab, name: str) -> list[psutil.Process]:
    """The processes of the lab's last run, and of no other server of this test session, with ``name`` in their command line."""
    processes = map(psutil.Process, _keeper.marked_processes(lab.run_ids[-1]))
    return [process for process in processes if any(name in part for part in process.cmdline()[:5])]


def named(name: str, above: int) -> psutil.Process:
    """The first of them."""
    return below(name, above)[0]


def until(condition: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def gone(lab: Lab) -> bool:
    """Nothing of any run of the lab is left."""
    processes = any(list(_keeper.marked_processes(run_id)) for run_id in lab.run_ids)
    return not processes and not list(Path(tempfile.gettempdir()).glob("internvideo-*"))


def test_started_system_answers_and_stops_cleanly(lab: Lab) -> None:
    lines: list[str] = []
    with start(ServeOptions(**options_of(lab)), lines.append) as server:
        lab.note_runs()
        assert [run_id for run_id in lab.run_ids if len(list(_keeper.marked_processes(run_id))) == 5]  # triton, 3 stubs, adapter
        assert len(list(Path("/dev/shm").glob(f"{_keeper.shm_prefix(lab.run_ids[0])}*"))) == 3
        for url in (f"{server.http_url}/v2/models/tensorrt_llm/ready", f"{server.adapter_url}/health/ready", server.metrics_url):
            assert answers(url)
        assert server.poll() is None
    assert server.poll() is None  # it was stopped, it did not end
    server.stop()
    assert any("3 of 3 models" in line or "tritonserver is ready" in line for line in lines)


def test_models_run_with_the_rendered_configuration(lab: Lab) -> None:
    with started(lab) as server:
        request = urllib.request.Request(
            f"{server.http_url}/v2/models/vit/infer",
            data=json.dumps({"inputs": [{"name": "IN", "shape": [1, 1], "datatype": "INT32", "data": [1]}]}).encode(),
        )
        with urllib.request.urlopen(request) as answer:
            config = json.loads(json.load(answer)["outputs"][0]["data"][0])
    assert config["parameters"]["device"]["string_value"] == "cpu"
    assert config["output"][1]["data_type"] == "TYPE_FP32"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_serve_cleanly(lab: Lab, signum: int) -> None:
    serving = Serving(lab)
    serving.wait_for("Ready.")
    code, errors = serving.end(signum)
    assert (code, errors) == (0, "")


def test_signal_while_starting_ends_everything(lab: Lab) -> None:
    lab.slow_model("vit")
    serving = Serving(lab)
    serving.wait_for("starting tritonserver")
    until(lambda: bool(below("triton_python_backend_stub", serving.process.pid)))
    code, errors = serving.end(signal.SIGTERM)
    lab.note_runs()
    assert (code, errors) == (0, "")


def test_killed_tritonserver_takes_its_stubs_along_and_serve_fails(lab: Lab) -> None:
    serving = Serving(lab)
    serving.wait_for("Ready.")
    named("bin/tritonserver", serving.process.pid).kill()
    _, errors = serving.process.communicate(timeout=60)
    assert serving.process.returncode == 1
    assert "tritonserver was ended by signal 9" in errors


def test_adapter_that_stays_unready_fails_the_start_with_its_answer(lab: Lab) -> None:
    lab.break_adapter()
    with pytest.raises(LaunchError, match="adapter was not ready after 8 s \\(HTTP 503 no engine"):
        start(ServeOptions(**options_of(lab, ready_timeout_s=8.0)))


def test_killed_adapter_ends_the_run(lab: Lab) -> None:
    with started(lab) as server:
        of_run(lab, "internvideo_client.adapter")[0].kill()
        until(lambda: server.poll() is not None)
        assert server.poll() == Ended("adapter", -9)


def test_stop_is_complete_after_a_stub_died(lab: Lab) -> None:
    with started(lab):
        of_run(lab, "triton_python_backend_stub")[0].kill()


def test_stop_does_not_wait_for_a_stub_that_hangs(lab: Lab) -> None:
    with started(lab) as server:
        stubs = of_run(lab, "triton_python_backend_stub")
        assert len(stubs) == 3
        for stub in stubs:
            stub.suspend()
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 30


def test_killed_launcher_leaves_nothing(lab: Lab) -> None:
    serving = Serving(lab)
    serving.wait_for("Ready.")
    serving.end(signal.SIGKILL)
    until(lambda: gone(lab))


def test_launcher_killed_while_starting_leaves_nothing(lab: Lab) -> None:
    lab.slow_model("vit")
    serving = Serving(lab)
    serving.wait_for("starting tritonserver")
    until(lambda: bool(below("triton_python_backend_stub", serving.process.pid)))
    serving.end(signal.SIGKILL)
    until(lambda: gone(lab))


def test_killed_keeper_is_replaced_by_the_launcher(lab: Lab) -> None:
    serving = Serving(lab)
    serving.wait_for("Ready.")
    named("_keeper.py", serving.process.pid).kill()
    _, errors = serving.process.communicate(timeout=60)
    assert serving.process.returncode == 1
    assert "keeper was ended by signal 9" in errors


def test_launcher_and_keeper_killed_together_are_swept_by_the_next_run(lab: Lab) -> None:
    serving = Serving(lab)
    serving.wait_for("Ready.")
    keeper = named("_keeper.py", serving.process.pid)
    serving.process.send_signal(signal.SIGSTOP)  # so that neither sees the other die
    keeper.kill()
    serving.end(signal.SIGKILL)
    with started(lab):
        assert not list(_keeper.marked_processes(lab.run_ids[0]))
        assert len(list(Path(tempfile.gettempdir()).glob("internvideo-*"))) == 1


def test_two_runs_at_once_do_not_touch_each_other(lab: Lab) -> None:
    with started(lab) as first:
        with started(lab) as second:
            assert first.http_url != second.http_url
        assert answers(f"{first.http_url}/v2/health/ready")


def test_model_that_does_not_load_fails_the_start_with_its_own_words(lab: Lab) -> None:
    lab.break_model("vit")
    with pytest.raises(LaunchError, match=r"tritonserver ended with exit code 1[\s\S]*the tower has no weights") as error:
        start(ServeOptions(**options_of(lab)))
    kept = str(error.value).rpartition("the whole log: ")[2].rstrip(")")
    assert "the tower has no weights" in Path(kept).read_text()


def test_start_that_takes_too_long_fails_and_leaves_nothing(lab: Lab) -> None:
    lab.slow_model("vit")
    with pytest.raises(LaunchError, match=r"tritonserver was not ready after 1 s \(.*refused"):
        start(ServeOptions(**options_of(lab, ready_timeout_s=1.0)))


def test_given_run_directory_is_kept_and_plain_tritonserver_runs_it(lab: Lab, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with started(lab, run_directory=kept) as running:
        assert running.repository == kept / "model_repository"
    assert "successfully loaded 'vit'" in (kept / "tritonserver.log").read_text()
    with pytest.raises(LaunchError, match="is not empty"):
        start(ServeOptions(**options_of(lab, run_directory=kept)))
    with pytest.raises(LaunchError, match=r"--run-directory .* has characters beyond ASCII"):
        start(ServeOptions(**options_of(lab, run_directory=tmp_path / "é")))

    server = find_tritonserver()
    port = resolve_ports({"--http-port": ("127.0.0.1", 0)})["--http-port"]
    command = [str(server.binary), f"--model-repository={kept / 'model_repository'}", f"--backend-directory={kept / 'backends'}"]
    command += [f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false"]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, env=server.environment(os.environ), stdout=null, stderr=null) as process:
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}/v2/health/ready"))
        finally:
            process.terminate()


def test_verbose_shows_the_log_while_it_is_written(lab: Lab, capfd: pytest.CaptureFixture[str]) -> None:
    with started(lab, verbose=True):
        pass
    assert "successfully loaded 'vit'" in capfd.readouterr().err
