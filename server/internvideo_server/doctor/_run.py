"""All checks in their order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..launch import LaunchError
from ..launch._artifacts import project_home
from ..launch._engine import world_size
from ..launch._repository import read_config
from ..launch._tritonserver import resolve_device
from ._gpu import find_gpus
from ._host import (
    check_backend,
    check_glibc,
    check_gpu_memory,
    check_gpus,
    check_media_roots,
    check_mpi,
    check_ports,
    check_python,
    check_shm,
    check_tritonserver,
)
from ._memory import memory_need
from ._models import check_agreement, check_checkpoint, check_engine
from ._report import Check, Report, failed, ok, skipped

_DEFAULT_PORTS = {
    "--port": ("127.0.0.1", 9997),
    "--triton-http-port": ("127.0.0.1", 8000),
    "--triton-grpc-port": ("127.0.0.1", 8001),
    "--triton-metrics-port": ("127.0.0.1", 8002),
}


@dataclass(frozen=True)
class DoctorOptions:
    """What is going to be served, with the flags of ``internvideo serve``.

    Args:
        checkpoint: Model directory; None: only the host is looked at.
        engine: Engine directory; None: the checkpoint's language model will be exported.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_frames: Frames of one request at most.
        media_roots: Directories for ``file://``.
        ports: Flag -> (host, port) that will be listened on.
        shm: Where shared memory is mounted.
    """

    checkpoint: Path | None = None
    engine: Path | None = None
    device: str = "auto"
    max_frames: int = 128
    media_roots: tuple[Path, ...] = ()
    ports: Mapping[str, tuple[str, int]] = field(default_factory=lambda: dict(_DEFAULT_PORTS))
    shm: Path = Path("/dev/shm")  # noqa: S108 - looked at, not written


def run(options: DoctorOptions, environ: Mapping[str, str] = os.environ) -> Report:
    """Look at everything; nothing is started and nothing is written.

    Args:
        options: What is going to be served.
        environ: PATH and Triton's variables.
    """
    return Report(tuple(_checks(options, environ)))


def _checks(options: DoctorOptions, environ: Mapping[str, str]) -> Iterator[Check]:
    yield check_python()
    yield check_glibc()
    triton, server = check_tritonserver(environ)
    yield from triton

    engine, checkpoint, limits, ranks, built = options.engine, None, None, 1, False
    if options.checkpoint is None:
        yield skipped("checkpoint", "none given: the small demo model of the project would be served")
    else:
        found, checkpoint = check_checkpoint(options.checkpoint)
        yield from found
    if engine is None:
        yield skipped("engine", "none given: the checkpoint's language model would be exported for the embedded engine")
    else:
        found, limits = check_engine(engine, max_frames=options.max_frames)
        yield from found
        built = any(engine.glob("rank*.engine"))
        ranks = _ranks(engine) if limits else 1
        if server is not None and limits is not None:
            yield check_backend(server, engine)
            yield check_mpi(ranks, environ)
        if checkpoint is not None and limits is not None:
            yield check_agreement(checkpoint, engine, limits)

    gpus = find_gpus(environ)
    try:
        device = resolve_device(options.device).index
    except LaunchError as error:
        yield failed("device", str(error), "--device auto, cpu, cuda or cuda:N")
        device = None
    yield from check_gpus(gpus, device, tensorrt_llm=built, ranks=ranks)
    repository, check = _repository()
    if device is not None and len(gpus) > device and engine and limits and checkpoint and repository:
        yield check_gpu_memory(gpus[device], memory_need(checkpoint, engine, limits), _kv_fraction(repository))
    yield check_shm(options.shm, ranks)
    yield check
    yield from check_media_roots(options.media_roots)
    yield from check_ports(options.ports)


def _ranks(engine: Path) -> int:
    try:
        return world_size(engine)
    except LaunchError:  # told by check_engine
        return 1


def _repository() -> tuple[Path | None, Check]:
    try:
        repository = project_home() / "model_repository"
    except LaunchError as error:
        reason, _, fix = str(error).partition(": ")
        return None, failed("model repository", reason, fix)
    return repository, ok("model repository", str(repository))


def _kv_fraction(repository: Path) -> float:
    """``kv_cache_free_gpu_mem_fraction`` as the repository sets it."""
    config = read_config(repository / "tensorrt_llm" / "config.pbtxt")
    return float(config.parameters["kv_cache_free_gpu_mem_fraction"].string_value)
