"""The checkpoint and the engine of a run: given, or made once by the build scripts and cached by content."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..checkpoint import Checkpoint, CheckpointError
from ..limits import TOKENS_PER_FRAME, EngineLimits, LimitsError
from ._errors import LaunchError, refused_by_the_system
from ._options import Device, ServeOptions
from ._processes import ProgramSpec, Run
from ._progress import Progress


def project_home() -> Path:
    """The project's root: ``$INTERNVIDEO_HOME``, or where this package was installed from (editable).

    Raises:
        LaunchError: There is no model repository.
    """
    given = os.environ.get("INTERNVIDEO_HOME")
    home = Path(given) if given else Path(__file__).resolve().parents[3]
    if not (home / "model_repository").is_dir():
        raise LaunchError(f"{home} has no model_repository/: set $INTERNVIDEO_HOME to the root of a clone of the project")
    return home.resolve()


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


def compiler_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables by which torch.compile keeps the tower's and the engine's kernels from start to start."""
    wanted = {"TORCHINDUCTOR_CACHE_DIR": str(cache_directory() / "kernels")}
    return {name: value for name, value in wanted.items() if name not in environ}


def find_checkpoint(options: ServeOptions, home: Path) -> Path:
    """The given checkpoint, or the small trained one that comes with the project."""
    return (options.checkpoint or home / "build_scripts" / "demo_model").resolve()


def find_engine(options: ServeOptions, checkpoint: Path, device: Device, run: Run, home: Path, progress: Progress) -> Path:
    """The given engine directory, or the cached export of the checkpoint's language model."""
    if options.engine is not None:
        return options.engine.resolve()
    dtype = device.default_dtype if options.dtype == "auto" else options.dtype
    try:
        fingerprint = Checkpoint.open(checkpoint).fingerprint()
    except CheckpointError as error:
        raise LaunchError(str(error)) from error
    key = f"{dtype}-{options.max_frames}-{_scripts_digest(home)}"
    target = cache_directory() / "engines" / fingerprint[:16] / key
    if not target.is_dir():
        progress.report("exporting the language model (once per checkpoint)")
        flags = ["--dtype", dtype, "--max-frames", str(options.max_frames)]
        with refused_by_the_system("the cache cannot be written; $INTERNVIDEO_CACHE names another folder"):
            _build(run, home, target, ["export_llm", str(checkpoint), *flags], progress, verbose=options.verbose)
    return target


def resolve_dtype(options: ServeOptions, engine: Path) -> str:
    """The run's dtype: the engine's, which a given ``--dtype`` must equal.

    Raises:
        LaunchError: The engine has another dtype, takes fewer frames than ``max_frames``, or lacks a config.json that can be read
            or a tokenizer.json.
    """
    try:
        limits = EngineLimits.from_engine_dir(engine)
    except LimitsError as error:
        raise LaunchError(str(error)) from error
    if options.dtype not in ("auto", limits.dtype):
        raise LaunchError(f"--dtype {options.dtype}, but the engine {engine} is {limits.dtype}: both must be equal")
    if options.max_frames > limits.max_frames:
        raise LaunchError(
            f"--max-frames {options.max_frames} needs {options.max_frames * TOKENS_PER_FRAME} rows of the prompt table "
            f"({TOKENS_PER_FRAME} a frame), "
            f"but the engine takes {limits.max_rows} per request: at most --max-frames {limits.max_frames}"
        )
    if not (engine / "tokenizer.json").is_file():
        raise LaunchError(f"{engine} has no tokenizer.json: make it with build_scripts/export_tokenizer.py")
    return limits.dtype


def _build(run: Run, home: Path, target: Path, command: list[str], progress: Progress, *, verbose: bool) -> None:
    """Run a build script into a directory beside ``target``, then rename: the cache never holds a half-made one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
        made = Path(beside) / "made"
        script, *arguments = command
        log = None if verbose or sys.stderr.isatty() else run.directory / f"{script}.log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))}
        # -P: the modules come from the project, never from the directory that a person happens to stand in.
        argv = [sys.executable, "-P", "-m", f"build_scripts.{script}", *arguments, "--out", str(made)]
        run.complete(ProgramSpec(f"build_scripts/{script}.py", argv, environment, log, grace_s=2.0), progress)
        if target.is_dir():
            return  # another launcher was quicker
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(made)


def _scripts_digest(home: Path) -> str:
    """Content key of the build scripts, so that a changed script makes its products anew."""
    digest = hashlib.sha256()
    for file in sorted((home / "build_scripts").glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
