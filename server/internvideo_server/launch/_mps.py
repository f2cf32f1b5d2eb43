"""CUDA's Multi-Process Service: tower and engine are two processes, and without it their kernels take turns on a GPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from internvideo_server.engine_directory import world_size

from ._errors import LaunchError
from ._processes import Run
from ._repository import RunPlan
from ._supervisor import RUN_MARK

_PROGRAM = "nvidia-cuda-mps-control"
_SYSTEM_PIPE = Path("/tmp/nvidia-mps/control")  # noqa: S108 - where clients look by default
_START_S, _CLIENT_S, _QUIT_S = 15.0, 60.0, 15.0
# A context, as each client makes one; the first client starts the service itself. Exit code 1: a CUDA error.
_CLIENT = """
import ctypes, sys
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
sys.exit(any((cuda.cuInit(0), cuda.cuDeviceGet(ctypes.byref(device), int(sys.argv[1])),
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))))
"""


def gpu_to_share(wanted: Literal["auto", "on", "off"], plan: RunPlan) -> int | None:
    """The GPU whose processes are to run side by side; None: no service."""
    gpus = [device.index for device in (plan.device, plan.vit_device) if device.index is not None]
    ranks = world_size(plan.engine) * plan.settings.tensor_parallel_size
    shared = len(gpus) == 2 and gpus[0] == gpus[1] and ranks == 1
    return gpus[0] if gpus and (wanted == "on" or (wanted == "auto" and shared)) else None


@contextlib.contextmanager
def mps_service(
    run: Run, gpu: int | None, *, needed: bool, report: Callable[[str], None], environ: Mapping[str, str] = os.environ
) -> Iterator[dict[str, str]]:
    """Run the service while the context is open, and give what its clients need in their environment.

    A service that the machine has already is used as it is. The run's mark lets the supervisor end this one where nobody else is
    left to do so.

    Args:
        run: Whose mark it has, and whose directory its pipes and logs.
        gpu: Where a client must work; None: no service.
        needed: Fail where it cannot be had; else go on without it.
        report: Told in a line what became of it.
        environ: Of this process.

    Raises:
        LaunchError: It is needed and cannot be had.
    """
    if gpu is None:
        yield {}
        return
    if "CUDA_MPS_PIPE_DIRECTORY" in environ or _SYSTEM_PIPE.exists():
        report("MPS: the machine's own is used")
        yield {}
        return
    program = shutil.which(_PROGRAM, path=environ.get("PATH"))
    folder = run.directory / "mps"
    folder.mkdir(mode=0o700)
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    # The service must see all GPUs: a choice made here and by its clients again would be made twice.
    service = {name: value for name, value in environ.items() if name != "CUDA_VISIBLE_DEVICES"} | own | {RUN_MARK: run.id}
    if program is None:
        fault = f"{_PROGRAM} is not on PATH"
    elif not (fault := _run([program, "-d"], service, _START_S)):  # returns when clients can connect
        fault = _run([sys.executable, "-I", "-S", "-c", _CLIENT, str(gpu)], {**environ, **own}, _CLIENT_S)
    if not fault:
        report("MPS: tower and engine run side by side")
        try:
            yield own
        finally:
            _quit(program, service)
        return
    _quit(program, service)
    if needed:
        raise LaunchError(f"--mps on: the service cannot be used here: {fault}. Use --mps auto or off")
    report(f"MPS: not used ({fault})")
    yield {}


def _run(command: list[str], environ: Mapping[str, str], timeout: float) -> str:
    try:
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    words = " ".join(f"{done.stdout} {done.stderr}".split())
    return f"exit code {done.returncode} {words[-300:]}".strip() if done.returncode else ""


def _quit(program: str | None, environ: Mapping[str, str]) -> None:
    if program is None:
        return
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run([program], env=environ, input="quit\n", capture_output=True, text=True, timeout=_QUIT_S, check=False)
