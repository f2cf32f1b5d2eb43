"""What would fail in minutes, found in a second: looked at before any work is done."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path

from internvideo_server.gpus import find_gpus
from internvideo_server.settings import ServeSettings

from ._device import Device
from ._engine_cache import cache_directory
from ._errors import LaunchError
from ._ulimits import raise_limits

_MIB = 1 << 20
_SHM_BYTES = 128 * _MIB  # below this the models' processes do not start, or a first large request fails
_DISK_BYTES = 64 * _MIB  # the rendered repository, the backends and some log
_GPU_FILES = ("nvidia[0-9]*", "dxg")


def check_settings(settings: ServeSettings) -> None:
    """What the settings alone cannot know: whether it is there.

    Raises:
        LaunchError: A directory or a package is missing.
    """
    if settings.video_reader == "decord" and util.find_spec("decord") is None:
        raise LaunchError("--video-reader decord needs the package: pip install decord==0.6.0")
    if settings.otlp_endpoint is not None and not _has_opentelemetry():
        raise LaunchError("--otlp-endpoint needs OpenTelemetry: pip install '.[otel]'")
    if settings.engine is not None and settings.checkpoint is None:
        raise LaunchError(
            "--engine needs --checkpoint too: the vision tower comes from the checkpoint that the engine was made of"
        )
    given = {"--checkpoint": settings.checkpoint, "--engine": settings.engine}
    for flag, directory in given.items():
        if directory is not None and not directory.is_dir():
            raise LaunchError(f"{flag} {directory} is not a directory")
    for directory in settings.allowed_local_media_path:
        if not directory.is_dir():
            raise LaunchError(f"--allowed-local-media-path {directory} is not a directory")


def _has_opentelemetry() -> bool:
    return util.find_spec("opentelemetry") is not None and util.find_spec("opentelemetry.sdk") is not None


def check_host(
    settings: ServeSettings, device: Device, vit_device: Device, environ: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> None:
    """Devices, shared memory, disks and limits.

    Args:
        settings: What is going to be served.
        device: Of the engine.
        vit_device: Of the tower.
        environ: Its PATH is searched for nvidia-smi.
        root: Where ``dev`` is.

    Raises:
        LaunchError: One of them will not do; the message says what to do.
    """
    wanted = {"--device": device, "--vit-device": vit_device}
    for flag, each in wanted.items():
        if each.index is not None:
            _check_gpu(flag, each.index, environ, root)
    if settings.vit_quantization == "fp8" and vit_device.index is None:
        raise LaunchError(
            "--vit-quantization fp8 needs a GPU (Ada, Hopper or newer), and the tower runs on the CPU: leave it out"
        )
    if settings.mps == "on" and device.index is None and vit_device.index is None:
        raise LaunchError("--mps on is for a GPU, and everything runs on the CPU: leave it out")
    if settings.video_reader == "nvdec" and not _has_gpu(environ, root):
        raise LaunchError("--video-reader nvdec decodes on a GPU, and there is none here: leave it out")
    shm = root / "dev" / "shm"
    if not shm.is_dir() or shutil.disk_usage(shm).free < _SHM_BYTES:
        free = shutil.disk_usage(shm).free // _MIB if shm.is_dir() else 0
        raise LaunchError(
            f"{shm} has {free} MiB free, and what passes between the models lies there: 1024 are wanted, {_SHM_BYTES // _MIB} "
            "are the least (docker run --shm-size=4g; remove what others left there)"
        )
    written = {"the cache ($INTERNVIDEO_CACHE)": cache_directory(), "--run-directory": settings.run_directory}
    written["the temporary directory ($TMPDIR)"] = Path(tempfile.gettempdir())
    for name, directory in written.items():
        if directory is not None:
            _check_disk(name, directory)
    raise_limits()


def _check_gpu(flag: str, index: int, environ: Mapping[str, str], root: Path) -> None:
    if not _has_gpu(environ, root):
        raise LaunchError(
            f"{flag} cuda: there is no GPU here (no driver, and nvidia-smi shows none): install the driver, give the container "
            "its GPUs (--gpus), or use --device cpu"
        )
    if (gpus := find_gpus(environ)) and index >= len(gpus):
        raise LaunchError(f"{flag} cuda:{index}: there are {len(gpus)} GPUs here, the first is cuda:0")
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        raise LaunchError("torch is not installed (`make setup` installs everything)") from None
    if "+cpu" in version:
        plain = version.split("+")[0]
        raise LaunchError(f"{flag} cuda: the installed torch {version} is a build without CUDA: install torch=={plain}")


def _has_gpu(environ: Mapping[str, str], root: Path) -> bool:
    return any(any((root / "dev").glob(name)) for name in _GPU_FILES) or bool(find_gpus(environ))


def _check_disk(name: str, directory: Path) -> None:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    usage = shutil.disk_usage(existing)
    if usage.total and usage.free < _DISK_BYTES:  # /proc and the like have none: writing there tells
        least = _DISK_BYTES // _MIB
        raise LaunchError(f"{name} {directory}: its disk has less than {least} MiB left: free some, or name another folder")
