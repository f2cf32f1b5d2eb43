"""Render the model repository for a plain ``tritonserver --model-repository``.

``internvideo serve`` renders its own at each start; this is for deployments that start tritonserver themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found as a script, too
from build_scripts._steps import replacing
from internvideo_server.launch import LaunchError
from internvideo_server.launch._artifacts import project_home
from internvideo_server.launch._repository import RunSettings, render_repository
from internvideo_server.launch._tritonserver import resolve_device
from internvideo_server.limits import EngineLimits, LimitsError


def render(settings: RunSettings, out: Path) -> None:
    """Write the repository; it appears whole or not at all, and replaces what was there.

    Raises:
        LaunchError: The project's repository or the engine directory is broken.
    """
    with replacing(out) as part:
        render_repository(project_home() / "model_repository", part, settings)


def main(
    checkpoint: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Model directory, for the vision tower.")],
    engine: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Engine directory.")],
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    device: Annotated[str, typer.Option(help="cpu or cuda:N: the engine's first GPU.")] = "cuda:0",
    vit_device: Annotated[str | None, typer.Option(help="Of the vision tower, if another.")] = None,
    vit_quantization: Annotated[str, typer.Option(help="Of the vision tower: none or fp8.")] = "none",
    num_frames: Annotated[int, typer.Option(help="Frames per video where the request does not say.")] = 80,
    max_frames: Annotated[int, typer.Option(help="The most frames a request may ask for.")] = 128,
    allowed_local_media_path: Annotated[
        list[Path] | None, typer.Option(help="Directory that file:// URLs may point into (repeatable).")
    ] = None,
    decode_workers: Annotated[int, typer.Option(min=1, help="Processes that decode video.")] = 4,
    max_queue_size: Annotated[int, typer.Option(min=1, help="Requests that may wait for preprocessing.")] = 64,
    kv_cache_fraction: Annotated[float | None, typer.Option(help="Share of the free GPU memory for the KV cache.")] = None,
) -> None:
    """Render the model repository for a plain tritonserver."""
    console = Console(stderr=True)
    try:
        settings = RunSettings(
            checkpoint=checkpoint.resolve(),
            engine=engine.resolve(),
            device=resolve_device(device),
            dtype=EngineLimits.from_engine_dir(engine).dtype,
            num_frames=min(num_frames, max_frames),
            max_frames=max_frames,
            allowed_local_media_path=tuple(allowed_local_media_path or ()),
            decode_workers=decode_workers,
            max_queue_size=max_queue_size,
            vit_device=resolve_device(vit_device) if vit_device else None,
            vit_quantization=vit_quantization,
            kv_cache_fraction=kv_cache_fraction,
        )
        render(settings, out)
    except (LaunchError, LimitsError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
