"""Make xgrammar's tokenizer description for NVIDIA's backend (:mod:`internvideo_server.export.grammar`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from internvideo_server.checkpoint import CheckpointError
from internvideo_server.export.grammar import export_grammar


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint directory.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json of the engine.")],
    out: Annotated[Path, typer.Option(help="xgrammar_tokenizer_info.json to write.")],
) -> None:
    """Make xgrammar's tokenizer description, for guided decoding in NVIDIA's backend."""
    try:
        export_grammar(checkpoint, tokenizer, out)
    except (CheckpointError, ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
