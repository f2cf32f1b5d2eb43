"""The project's own files, the checkpoint of a run, and whether its engine fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from internvideo_server import project
from internvideo_server.engine_directory import world_size
from internvideo_server.limits import EngineLimits, LimitsError
from internvideo_server.settings import ServeSettings

from ._engine_cache import cache_directory
from ._errors import LaunchError


def project_home() -> Path:
    """See :func:`internvideo_server.project.project_home`.

    Raises:
        LaunchError: There is no model repository.
    """
    try:
        return project.project_home()
    except FileNotFoundError as error:
        raise LaunchError(str(error)) from None


def compiler_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables by which torch.compile and vLLM keep the tower's and the engine's kernels from start to start."""
    wanted = {"TORCHINDUCTOR_CACHE_DIR": str(cache_directory() / "kernels"), "VLLM_CACHE_ROOT": str(cache_directory() / "vllm")}
    return {name: value for name, value in wanted.items() if name not in environ}


def find_checkpoint(options: ServeSettings, home: Path) -> Path:
    """The given checkpoint, or the small trained one that comes with the project."""
    return (options.checkpoint or home / "build_scripts" / "demo_model").resolve()


def page_examples(options: ServeSettings, home: Path) -> Path | None:
    """Videos that the page offers: those that the small demo model answers rightly, where it is what is served."""
    return home / "examples" / "page" if options.checkpoint is None else None


def resolve_dtype(options: ServeSettings, engine: Path) -> str:
    """The run's dtype: the engine's, which a given ``--dtype`` must equal.

    Raises:
        LaunchError: The engine has another dtype, or lacks a config.json that can be read or a tokenizer.json.
    """
    try:
        limits = EngineLimits.from_engine_dir(engine)
        world_size(engine)  # whether the files are those of its config.json
    except LimitsError as error:
        raise LaunchError(str(error)) from error
    if options.dtype not in ("auto", limits.dtype):
        raise LaunchError(f"--dtype {options.dtype}, but the engine {engine} is {limits.dtype}: both must be equal")
    if not (engine / "tokenizer.json").is_file():
        raise LaunchError(f"{engine} has no tokenizer.json: make it with build_scripts/export_tokenizer.py")
    return limits.dtype
