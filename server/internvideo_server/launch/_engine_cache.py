"""Exports of language models in the cache: made once for a checkpoint and a dtype, shared by runs with limits of their own.

``engines/<fingerprint>/<dtype>-<format>`` holds the weights; a run gets a directory of its own that points to them and has the
run's limits beside, so two servers with different limits share one export.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from internvideo_server.checkpoint import Checkpoint, CheckpointError
from internvideo_server.context import Context
from internvideo_server.export.language_model import FORMAT, write_limits
from internvideo_server.limits import EngineLimits
from internvideo_server.settings import ServeSettings

from ._device import Device
from ._errors import LaunchError, refused_by_the_system
from ._processes import ProgramSpec, Run
from ._progress import Progress
from ._verified import MANIFEST, damage, seal

_EXPORT = "internvideo_server.export"
_LOCK = "lock"  # of a directory in which an export is being made
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def cache_directory() -> Path:
    """``$INTERNVIDEO_CACHE``, or ``~/.cache/internvideo``.

    Raises:
        LaunchError: The user has no home.
    """
    given = os.environ.get("INTERNVIDEO_CACHE")
    try:
        return Path(given).resolve() if given else Path.home() / ".cache" / "internvideo"
    except RuntimeError:
        raise LaunchError("this user has no home directory for the cache: set $INTERNVIDEO_CACHE to a folder") from None


@contextmanager
def exported_engine(
    settings: ServeSettings, checkpoint: Path, device: Device, run: Run, directory: Path, progress: Progress
) -> Iterator[Path]:
    """The engine directory of a run: the cached export, made if it is not there, with the run's limits.

    Args:
        settings: The run's.
        checkpoint: Whose language model it is.
        device: Decides the dtype where the settings do not.
        run: Ends the export with the run.
        directory: Of the run, where the engine directory is made.
        progress: Told what takes time.

    Raises:
        LaunchError: The checkpoint is broken, or the cache cannot be written.
    """
    target = ensure_exported(settings, checkpoint, device, run, progress)
    with (target / MANIFEST).open() as in_use:
        fcntl.flock(in_use, fcntl.LOCK_SH)  # `clear` leaves it alone
        os.utime(target / MANIFEST)
        yield _with_limits(target, directory / "engine", settings)


def ensure_exported(settings: ServeSettings, checkpoint: Path, device: Device, run: Run, progress: Progress) -> Path:
    """The cached export, made if it is not there; arguments and errors as of :func:`exported_engine`."""
    try:
        opened = Checkpoint.open(checkpoint)
        fingerprint = opened.fingerprint()
    except CheckpointError as error:
        raise LaunchError(str(error)) from error
    dtype = device.default_dtype if settings.dtype == "auto" else settings.dtype
    target = cache_directory() / "engines" / fingerprint[:16] / f"{dtype}-{FORMAT}"
    _ensure(target, opened, dtype, run, progress, verbose=settings.verbose)
    return target


def _ensure(target: Path, checkpoint: Checkpoint, dtype: str, run: Run, progress: Progress, *, verbose: bool) -> None:
    if target.is_dir() and (fault := damage(target)) is not None:
        progress.warn(f"the cached export {target} is damaged ({fault}): it is made anew")
        with refused_by_the_system(f"the damaged export cannot be removed: delete {target}"):
            shutil.rmtree(target)
    if not target.is_dir():
        progress.report("exporting the language model (once per checkpoint)")
        with refused_by_the_system("the cache cannot be written; $INTERNVIDEO_CACHE names another folder"):
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target.parent)
            _check_room(target.parent, checkpoint, dtype)
            _export(run, target, [str(checkpoint.path), "--dtype", dtype], progress, verbose=verbose)


def _check_room(directory: Path, checkpoint: Checkpoint, dtype: str) -> None:
    """The language model is all but a twentieth of a checkpoint."""
    size = sum(file.stat().st_size for file in set(checkpoint.tensor_files.values()))
    needed = size * _ITEM_BYTES[dtype] // _ITEM_BYTES[checkpoint.dtype]
    if (free := shutil.disk_usage(directory).free) < needed:
        raise LaunchError(
            f"the cache {directory} has {free / 2**30:.1f} GiB free, and the export of the language model takes about "
            f"{needed / 2**30:.1f}: free some, or name another folder in $INTERNVIDEO_CACHE"
        )


def _sweep(directory: Path) -> None:
    """Remove what was half made when a launcher was killed."""
    for made in directory.glob(".*"):
        with contextlib.suppress(OSError), open(made / _LOCK) as lock:  # another launcher is at work there
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(made)


def _with_limits(export: Path, engine: Path, settings: ServeSettings) -> Path:
    engine.mkdir(mode=0o700)
    for item in export.iterdir():
        if not item.name.startswith(".") and item.name != "config.json":
            (engine / item.name).symlink_to(item)
    limits = EngineLimits.from_engine_dir(export)
    context = Context.of(settings.max_frames, settings.wanted_length)
    write_limits(limits.of_length(context.max_frames, context.max_model_len), engine)
    return engine


def _export(run: Run, target: Path, arguments: list[str], progress: Progress, *, verbose: bool) -> None:
    """Run the export into a directory beside ``target``, then rename: the cache never holds a half-made one."""
    with (
        tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside,
        open(Path(beside, _LOCK), "w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = Path(beside) / "made"
        log = None if verbose or sys.stderr.isatty() else run.directory / "export.log"
        # -P: the modules come from the project, never from the directory that a person happens to stand in.
        argv = [sys.executable, "-P", "-m", _EXPORT, *arguments, "--out", str(made), "--quiet"]  # `made` is renamed
        run.complete(ProgramSpec("the export", argv, os.environ, log, grace_s=2.0), progress)
        seal(made)
        if target.is_dir():
            return  # another launcher was quicker
        try:
            made.rename(target)
            _sync(target.parent)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(made)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class CachedEngine:
    """One export in the cache.

    Attributes:
        path: Its directory.
        fingerprint: Beginning of the checkpoint's.
        dtype: Of the weights.
        current: Whether this version of the project still uses its format.
        size: Bytes.
        used: When a run last took it, in seconds since the epoch; 0: never, or made by an older version.
    """

    path: Path
    fingerprint: str
    dtype: str
    current: bool
    size: int
    used: float


def cached_engines() -> list[CachedEngine]:
    """What lies in the cache, used last first."""
    found = []
    for path in sorted((cache_directory() / "engines").glob("*/[!.]*")):
        dtype, _, version = path.name.partition("-")
        manifest = path / MANIFEST
        used = manifest.stat().st_mtime if manifest.is_file() else 0.0
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        found.append(CachedEngine(path, path.parent.name, dtype, version == str(FORMAT), size, used))
    return sorted(found, key=lambda engine: -engine.used)


def clear_engines(*, everything: bool = False) -> list[CachedEngine]:
    """Remove the exports of older formats, or all that no run uses.

    Returns:
        What was removed.
    """
    removed = []
    for engine in cached_engines():
        if (everything or not engine.current) and not _in_use(engine.path):
            shutil.rmtree(engine.path)
            removed.append(engine)
    return removed


def _in_use(export: Path) -> bool:
    try:
        with (export / MANIFEST).open() as manifest:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
