"""Render the model repository for a plain ``tritonserver --model-repository``.

``internvideo serve`` renders its own at each start; this is for deployments that start tritonserver themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from build_scripts._steps import replacing
from internvideo_server.launch import LaunchError, RunPlan, project_home, render_repository, resolve_device, settle_length
from internvideo_server.limits import EngineLimits, LimitsError
from internvideo_server.settings import RepositorySettings, options_from


def render(plan: RunPlan, out: Path) -> None:
    """Write the repository; it appears whole or not at all, and replaces what was there.

    Raises:
        LaunchError: The project's repository or the engine directory is broken.
    """
    with replacing(out) as part:
        render_repository(project_home() / "model_repository", part, plan)


@options_from(RepositorySettings)
def main(settings: RepositorySettings, *, out: Annotated[Path, typer.Option(help="Directory to make.")]) -> None:
    """Render the model repository for a plain tritonserver: options of `internvideo serve` that the models read."""
    console = Console(stderr=True)
    try:
        if settings.checkpoint is None or settings.engine is None:
            raise LaunchError("--checkpoint and --engine are needed")
        checkpoint = settings.checkpoint.resolve()
        engine, device = settings.engine.resolve(), resolve_device(settings.device)
        vit_device = resolve_device(settings.vit_device) if settings.vit_device else device
        settings, told = settle_length(settings, checkpoint, device, vit_device, [])
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        dtype = EngineLimits.from_engine_dir(engine).dtype
        render(RunPlan(settings, checkpoint, engine, dtype, device, vit_device), out)
    except (LaunchError, LimitsError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
