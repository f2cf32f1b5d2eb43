"""``python -m internvideo_server.export``: make the engine directory of the embedded engine from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from safetensors import SafetensorError

from .language_model import MAX_BATCH_SIZE, Dtype, export_llm


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint directory.")],
    out: Annotated[Path, typer.Option(help="Engine directory to make or bring up to date.")],
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = MAX_BATCH_SIZE,
    max_frames: Annotated[int | None, typer.Option(min=4, help="Frames of one request at most; without it 128.")] = None,
    max_seq_len: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and answer together; without it what the frames need, and 4096.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; auto keeps the checkpoint's.")] = Dtype.AUTO,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not say where it is.")] = False,
) -> None:
    """Make the engine directory of the embedded engine from an InternVideo2.5 checkpoint."""
    try:
        export_llm(
            checkpoint,
            out,
            max_batch_size=max_batch_size,
            max_frames=max_frames,
            max_seq_len=max_seq_len,
            dtype=dtype,
        )
    except (ValueError, OSError, SafetensorError) as error:  # the last two: disk full, no permission
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if not quiet:
        Console(stderr=True).print(f"engine: {out}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
