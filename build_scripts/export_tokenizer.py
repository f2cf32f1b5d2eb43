"""Make ``tokenizer.json`` from a checkpoint's sentencepiece model (:mod:`internvideo_server.export.tokenizer`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo_server.export.tokenizer import TokenizerExportError, export_tokenizer


def main(
    checkpoint: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Checkpoint directory.")],
    out: Annotated[Path, typer.Option(help="tokenizer.json to write.")],
) -> None:
    """Make tokenizer.json from a checkpoint's tokenizer.model and added tokens."""
    try:
        export_tokenizer(checkpoint, out)
    except TokenizerExportError as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
