"""All checks in their order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from internvideo_server import sandbox
from internvideo_server.context import Context
from internvideo_server.engine_directory import world_size
from internvideo_server.gpus import Gpu, find_gpus
from internvideo_server.launch import LaunchError, project_home, read_config, resolve_device, settle_length
from internvideo_server.limits import LimitsError
from internvideo_server.memory import available_memory, deployment_of
from internvideo_server.settings import ServeSettings

from ._host import (
    check_backend,
    check_glibc,
    check_gpu_memory,
    check_gpus,
    check_media_roots,
    check_mpi,
    check_ports,
    check_python,
    check_sandbox,
    check_shm,
    check_tritonserver,
)
from ._models import check_agreement, check_checkpoint, check_engine
from ._report import Check, Report, failed, ok, skipped

_SHM = Path("/dev/shm")  # noqa: S108 - looked at, not written


def run(settings: ServeSettings, environ: Mapping[str, str] = os.environ, *, shm: Path = _SHM) -> Report:
    """Look at everything; nothing is started and nothing is written.

    Args:
        settings: What is going to be served.
        environ: PATH and Triton's variables.
        shm: Where shared memory is mounted.
    """
    return Report(tuple(_checks(settings, environ, shm)))


def _checks(settings: ServeSettings, environ: Mapping[str, str], shm: Path) -> Iterator[Check]:
    yield check_python()
    yield check_glibc()
    triton, server = check_tritonserver(environ)
    yield from triton

    engine, checkpoint, limits, ranks, built = settings.engine, None, None, 1, False
    if settings.checkpoint is None:
        yield skipped("checkpoint", "none given: the small demo model of the project would be served")
    else:
        found, checkpoint = check_checkpoint(settings.checkpoint)
        yield from found
    if engine is None:
        yield skipped("engine", "none given: the checkpoint's language model would be exported")
    else:
        found, limits = check_engine(engine, max_frames=settings.max_frames)
        yield from found
        built = any(engine.glob("rank*.engine"))
        ranks = _ranks(engine) if limits else 1
        if server is not None and limits is not None:
            yield check_backend(server, engine)
            yield check_mpi(ranks, environ)
        if checkpoint is not None and limits is not None:
            yield check_agreement(checkpoint, engine, limits)

    gpus = find_gpus(environ)
    device = resolve_device(settings.device).index
    yield from check_gpus(gpus, device, tensorrt_llm=built, ranks=ranks)
    if settings.checkpoint is None or checkpoint is not None:
        yield _length(settings, gpus)
    repository, check = _repository()
    if built and device is not None and len(gpus) > device and engine and limits and checkpoint and repository:
        # The other engines' is in `length`, by the same rule as at the start.
        deployment = deployment_of(checkpoint.config, engine, limits, settings.cuda_region_count)
        deployment = replace(deployment, region_bytes=settings.region_bytes(limits.table_bytes))
        need = deployment.need(Context(limits.max_frames, limits.max_seq_len))
        yield check_gpu_memory(gpus[device], need, settings.kv_cache_fraction or _kv_fraction(repository))
    yield check_shm(shm, ranks)
    yield check_sandbox(sandbox.tried_elsewhere())
    yield check
    yield from check_media_roots(settings.allowed_local_media_path)
    yield from check_ports(settings.listeners)


def _length(settings: ServeSettings, gpus: Sequence[Gpu]) -> Check:
    """How long requests may be, and that they fit."""
    device = resolve_device(settings.device)
    vit_device = device if settings.vit_device is None else resolve_device(settings.vit_device)
    try:
        checkpoint = settings.checkpoint or project_home() / "build_scripts" / "demo_model"
        return ok("length", settle_length(settings, checkpoint, device, vit_device, gpus, available_memory())[1])
    except LaunchError as error:
        reason, _, fix = str(error).rpartition(": ")
        return failed("length", reason or fix, fix)


def _ranks(engine: Path) -> int:
    try:
        return world_size(engine)
    except LimitsError:  # told by check_engine
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
