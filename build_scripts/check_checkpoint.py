"""Check a checkpoint before hours are spent on it: files, index, headers, every tensor's shape, and the wanted parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from internvideo_server.checkpoint import Checkpoint, CheckpointError
from internvideo_server.doctor import check_shapes


def check_checkpoint(path: Path, *, tp: int = 1, pp: int = 1) -> str:
    """Read headers and JSON only.

    Args:
        path: The checkpoint's directory.
        tp: GPUs that shall share each layer.
        pp: Groups of GPUs that shall share the layers.

    Returns:
        What it is, for people.

    Raises:
        CheckpointError: It is broken, or cannot be split so.
    """
    checkpoint = Checkpoint.open(path)
    parameters = check_shapes(checkpoint)
    llm = checkpoint.llm_config
    for key, parts, flag in (
        ("num_attention_heads", tp, "--tp"),
        ("num_key_value_heads", tp, "--tp"),
        ("num_hidden_layers", pp, "--pp"),
    ):
        if llm[key] % parts:
            raise CheckpointError(f"{flag} {parts} does not divide the language model's {key} {llm[key]}")
    return f"{path}: {parameters:,} parameters, {checkpoint.dtype}, vocabulary {llm['vocab_size']}"


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint directory.")],
    tp: Annotated[int, typer.Option(min=1, help="GPUs that shall share each layer.")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Groups of GPUs that shall share the layers.")] = 1,
) -> None:
    """Check a checkpoint: files, index, headers, shapes, and the wanted parallelism."""
    console = Console(stderr=True)
    try:
        console.print(check_checkpoint(checkpoint, tp=tp, pp=pp), markup=False, highlight=False, soft_wrap=True)
    except CheckpointError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
