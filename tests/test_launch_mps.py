"""CUDA's Multi-Process Service: when it is started, what its clients are told, and that it goes with the run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from internvideo_server.launch import LaunchError, _mps, _supervisor
from internvideo_server.launch._checks import check_host
from internvideo_server.launch._device import Device
from internvideo_server.launch._processes import Run
from internvideo_server.launch._repository import RunPlan
from internvideo_server.settings import ServeSettings

CPU, GPU, OTHER = Device(None), Device(0), Device(1)
# The service's control: notes how it was called, and what it could see.
CONTROL = """#!/bin/sh
echo "$1 $(test -n "$1" || cat) $CUDA_MPS_PIPE_DIRECTORY ${CUDA_VISIBLE_DEVICES-all}" >> "$(dirname "$0")/calls"
[ "$1" != -d ] || exec sh -c "$START"
"""


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine whose control program is `CONTROL`, with a client that works."""
    monkeypatch.setattr(_mps, "_SYSTEM_PIPE", tmp_path / "none")
    monkeypatch.setattr(_mps, "_CLIENT", "")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.write_text(CONTROL)
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "3", "START": "exit 0"}


@contextmanager
def service(
    environ: dict[str, str], *, gpu: int | None = 0, needed: bool = False
) -> Iterator[tuple[Run, dict[str, str], list[str]]]:
    said: list[str] = []
    with Run() as run, _mps.mps_service(run, gpu, needed=needed, report=said.append, environ=environ) as own:
        yield run, own, said


def calls(environ: dict[str, str]) -> list[str]:
    file = Path(environ["PATH"].partition(":")[0], "calls")
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
    ("wanted", "device", "vit_device", "parallel", "gpu"),
    [
        ("auto", GPU, GPU, 1, 0),
        ("auto", OTHER, OTHER, 1, 1),
        ("auto", GPU, OTHER, 1, None),
        ("auto", GPU, GPU, 2, None),
        ("auto", CPU, CPU, 1, None),
        ("auto", CPU, GPU, 1, None),
        ("on", GPU, OTHER, 1, 0),
        ("off", GPU, GPU, 1, None),
    ],
)
def test_it_is_for_processes_that_share_one_gpu(
    wanted: Literal["auto", "on", "off"], device: Device, vit_device: Device, parallel: int, gpu: int | None, tmp_path: Path
) -> None:
    settings = ServeSettings(tensor_parallel_size=parallel)
    assert _mps.gpu_to_share(wanted, RunPlan(settings, tmp_path, tmp_path, "bfloat16", device, vit_device)) == gpu


def test_on_without_a_gpu_is_refused_before_any_work() -> None:
    with pytest.raises(LaunchError, match="--mps on is for a GPU"):
        check_host(ServeSettings(mps="on", device="cpu"), CPU, CPU)


def test_clients_are_told_where_it_is_and_it_ends_with_the_run(environ: dict[str, str]) -> None:
    with service(environ) as (run, own, said):
        pipes = own["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(pipes).is_relative_to(run.directory)
        assert calls(environ) == [f"-d  {pipes} all"]  # it sees every GPU, its clients choose
    assert calls(environ)[1:] == [f" quit {pipes} all"]
    assert said == ["MPS: tower and engine run side by side"]


@pytest.mark.parametrize("fault", ["not there", "not allowed", "no client"])
def test_where_it_cannot_be_had_the_start_goes_on_without_it(
    fault: str, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "not there":
        environ["PATH"] = os.defpath
    elif fault == "not allowed":
        environ["START"] = "echo An instance of this daemon is already running; exit 1"
    else:
        monkeypatch.setattr(_mps, "_CLIENT", "raise SystemExit('CUDA error 805')")
    reason = {"not there": "not on PATH", "not allowed": "already running", "no client": "CUDA error 805"}[fault]
    with service(environ) as (_, own, said):
        assert own == {}
        assert len(said) == 1
        assert said[0].startswith("MPS: not used")
        assert reason in said[0]
        assert len([call for call in calls(environ) if call.startswith(" quit")]) == (fault != "not there")
    with pytest.raises(LaunchError, match=reason), service(environ, needed=True):
        pytest.fail("it was needed")


def test_a_service_that_the_machine_has_is_left_alone(environ: dict[str, str]) -> None:
    with service({**environ, "CUDA_MPS_PIPE_DIRECTORY": "/run/mps"}) as (_, own, _said):
        assert own == {}
    assert calls(environ) == []


def test_it_outlives_a_tritonserver_and_not_the_run(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-cuda-mps-server"
    shutil.copyfile("/bin/sleep", program)
    program.chmod(0o755)
    with Run() as run:
        processes = [subprocess.Popen([path, "60"], env={_supervisor.RUN_MARK: run.id}) for path in (str(program), "/bin/sleep")]
        try:
            _supervisor.end_orphans(run.id, {})
            assert processes[1].wait(10) == -9
            assert processes[0].poll() is None
            _supervisor.remove_remains(run.id, run.since)
            assert processes[0].wait(10) == -9
        finally:
            for process in processes:
                process.kill()
                process.wait()
