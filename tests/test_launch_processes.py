"""Starting, stopping and dying, with the real tritonserver and trivial models: nothing of a run may outlive it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from internvideo_server.launch import LaunchError, _supervisor, find_tritonserver, start
from internvideo_server.launch._ports import resolve_ports
from internvideo_server.settings import ServeSettings
from tests.launch_lab import Lab
from tests.launch_runs import (
    Serving,
    answers,
    below,
    gone,
    model_is_ready,
    named,
    of_run,
    options_of,
    started,
    until,
)

pytestmark = pytest.mark.server


def test_started_system_answers_and_stops_cleanly(lab: Lab) -> None:
    lines: list[str] = []
    with start(ServeSettings(**options_of(lab)), lines.append) as server:
        lab.note_runs()
        assert [
            run_id for run_id in lab.run_ids if len(list(_supervisor.marked_processes(run_id))) == 5
        ]  # triton, 3 stubs, adapter
        assert len(list(Path("/dev/shm").glob(f"{_supervisor.shm_prefix(lab.run_ids[0])}*"))) == 3
        assert server.http_url is None
        assert model_is_ready(server, "tensorrt_llm")
        for url in (f"{server.adapter_url}/health/ready", server.metrics_url):
            assert answers(url)
        assert server.poll() is None
    assert server.poll() is None  # it was stopped, it did not end
    server.stop()
    assert any("3 of 3 models" in line or "tritonserver is ready" in line for line in lines)


def test_models_run_with_the_rendered_configuration(lab: Lab) -> None:
    with started(lab) as server:
        with grpcclient.InferenceServerClient(server.grpc_url) as triton:
            given = grpcclient.InferInput("IN", [1, 1], "INT32").set_data_from_numpy(np.ones((1, 1), np.int32))
            config = json.loads(triton.infer("vit", [given]).as_numpy("CONFIG").item())
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


def test_adapter_that_stays_unready_fails_the_start_with_its_answer(lab: Lab) -> None:
    lab.break_adapter()
    with pytest.raises(LaunchError, match="adapter was not ready after 8 s \\(HTTP 503 no engine"):
        start(ServeSettings(**options_of(lab, ready_timeout=8.0)))


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


def test_killed_supervisor_is_replaced_by_the_launcher(lab: Lab) -> None:
    serving = Serving(lab)
    serving.wait_for("Ready.")
    named("_supervisor.py", serving.process.pid).kill()
    code, errors = serving.finish()
    assert code == 3
    assert "supervisor was ended by signal 9" in errors


def test_launcher_and_supervisor_killed_together_are_swept_by_the_next_run(lab: Lab) -> None:
    serving = Serving(lab)
    serving.wait_for("Ready.")
    supervisor = named("_supervisor.py", serving.process.pid)
    serving.process.send_signal(signal.SIGSTOP)  # so that neither sees the other die
    supervisor.kill()
    serving.end(signal.SIGKILL)
    with started(lab):
        assert not list(_supervisor.marked_processes(lab.run_ids[0]))
        assert len(list(Path(tempfile.gettempdir()).glob("internvideo-*"))) == 1


def test_two_runs_at_once_do_not_touch_each_other(lab: Lab) -> None:
    with started(lab) as first:
        with started(lab) as second:
            assert first.grpc_url != second.grpc_url
        assert model_is_ready(first, "vit")


def test_model_that_does_not_load_fails_the_start_with_its_own_words(lab: Lab) -> None:
    lab.break_model("vit")
    with pytest.raises(LaunchError, match=r"tritonserver (was )?ended [\s\S]*the tower has no weights") as error:
        start(ServeSettings(**options_of(lab)))
    kept = str(error.value).rpartition("the whole log: ")[2].rstrip(")")
    assert "the tower has no weights" in Path(kept).read_text()


def test_start_that_takes_too_long_fails_and_leaves_nothing(lab: Lab) -> None:
    lab.slow_model("vit")
    with pytest.raises(LaunchError, match=r"tritonserver was not ready after 1 s \(.*refused"):
        start(ServeSettings(**options_of(lab, ready_timeout=1.0)))


def test_given_run_directory_is_kept_and_plain_tritonserver_runs_it(lab: Lab, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with started(lab, run_directory=kept) as running:
        assert running.repository == kept / "model_repository"
    assert "successfully loaded 'vit'" in (kept / "tritonserver.log").read_text()
    with pytest.raises(LaunchError, match="is not empty"):
        start(ServeSettings(**options_of(lab, run_directory=kept)))

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
