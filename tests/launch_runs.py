"""Runs of the laboratory: started in this process or as `serve` in one of its own, and looked at from outside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient

from internvideo_server.launch import RunningServer, _supervisor, start
from internvideo_server.settings import ServeSettings
from tests.launch_lab import Lab

SERVE = """
import json, sys
from pathlib import Path
from internvideo_server.launch import serve
from internvideo_server.settings import ServeSettings
paths = ("checkpoint", "engine", "run_directory")
options = json.loads(sys.argv[1])
sys.exit(serve(ServeSettings(**{key: Path(value) if key in paths else value for key, value in options.items()})))
"""


@contextlib.contextmanager
def laboratory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A laboratory, and the environment in which the launcher finds it.

    At its end: no process, no segment, no directory of any of its runs.
    """
    began = time.time()
    lab = Lab(tmp_path)
    monkeypatch.setenv("INTERNVIDEO_HOME", str(lab.home))
    monkeypatch.setenv("INTERNVIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(lab.python_path))
    # Runs of other tests on this machine are not looked at, and not swept.
    runs = tmp_path / "runs"
    runs.mkdir()
    monkeypatch.setenv("TMPDIR", str(runs))
    monkeypatch.setattr(tempfile, "tempdir", str(runs))
    yield lab
    seen = {run_id for run_id in lab.run_ids if list(_supervisor.marked_processes(run_id))}
    assert seen == set()
    for run_id in lab.run_ids:
        assert list(Path("/dev/shm").glob(f"{_supervisor.shm_prefix(run_id)}*")) == []
    assert list(Path(tempfile.gettempdir()).glob("internvideo-*")) == []
    if not list(_supervisor._tritonserver_starts()):  # the directories of another living server look the same
        assert [path for path in Path("/tmp").glob("python_env_*") if path.stat().st_mtime >= began] == []


def options_of(lab: Lab, **changes: Any) -> dict[str, Any]:
    ports = {f"{name}port": 0 for name in ("", "triton_grpc_", "triton_metrics_")}
    engine: dict[str, Any] = {} if lab.engine is None else {"engine": lab.engine}
    return {"checkpoint": lab.checkpoint, **engine, "device": "cpu", **ports, **changes}


def started(lab: Lab, **changes: Any) -> RunningServer:
    server = start(ServeSettings(**options_of(lab, **changes)))
    lab.note_runs()
    return server


class Serving:
    """``serve`` in a process of its own (the launcher), as the CLI runs it."""

    def __init__(self, lab: Lab, *, shell: str = "true", **changes: Any) -> None:
        """``shell``: a line that comes first, in the same process."""
        options = {key: str(value) if isinstance(value, Path) else value for key, value in options_of(lab, **changes).items()}
        self.lab, self.line = lab, ""
        self.process = subprocess.Popen(
            ["sh", "-c", f'{shell} && exec "$@"', "sh", sys.executable, "-c", SERVE, json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "500"},
        )
        self._errors: list[str] = []
        self.warned_of_root = False
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                if "this runs as root" in line:
                    self.warned_of_root = True
                else:
                    self._errors.append(line)

    @property
    def errors(self) -> str:
        """What it wrote to stderr so far."""
        return "".join(self._errors)

    def finish(self, seconds: float = 120) -> tuple[int, str]:
        """Wait for its end: exit code and stderr."""
        assert self.process.stdout is not None
        if not self.process.stdout.closed:
            with self.process.stdout as rest:
                rest.read()
        code = self.process.wait(seconds)
        self._reader.join()
        return code, self.errors

    def wait_for(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                self.line = line
                self.lab.note_runs()
                return
        raise AssertionError(f"{text!r} never came: {self.finish()}")

    def end(self, signum: int) -> tuple[int, str]:
        os.kill(self.process.pid, signum)
        return self.finish(60)


def state_of(server: RunningServer) -> dict[str, Any]:
    """What ``state.json`` of the run says."""
    document: dict[str, Any] = json.loads(server.repository.with_name("state.json").read_text())
    return document


def stub_of(lab: Lab, model: str) -> psutil.Process:
    """The process of a model."""
    return next(stub for stub in of_run(lab, "triton_python_backend_stub") if f"{model}_0_0" in stub.cmdline())


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
    processes = map(psutil.Process, _supervisor.marked_processes(lab.run_ids[-1]))
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


def model_is_ready(server: RunningServer, name: str) -> bool:
    with grpcclient.InferenceServerClient(server.grpc_url) as triton:
        return bool(triton.is_model_ready(name))


def model_answers(server: RunningServer, name: str) -> bool:
    """Whether the process of a laboratory's model answers a request."""
    given = grpcclient.InferInput("IN", [1, 1], "INT32").set_data_from_numpy(np.ones((1, 1), np.int32))
    with grpcclient.InferenceServerClient(server.grpc_url) as triton:
        return triton.infer(name, [given], client_timeout=20).as_numpy("CONFIG") is not None


def gone(lab: Lab) -> bool:
    """Nothing of any run of the lab is left."""
    processes = any(list(_supervisor.marked_processes(run_id)) for run_id in lab.run_ids)
    return not processes and not list(Path(tempfile.gettempdir()).glob("internvideo-*"))
