"""Put the exported model and a tokenizer that ``transformers`` can load side by side, for quantisation with calibration texts.

Calibration texts must start with <s>, as every prompt does: the first token's activations are the largest there are, and a
scale found without them would cut them off. The texts hold no video, so the rows of a prompt table are never seen by it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tokenizers import Tokenizer, processors

from build_scripts._steps import replacing

_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
}


def calibration_model(model: Path, tokenizer: Path, out: Path) -> None:
    """Write ``out`` anew: links to the model's files, and the tokenizer.

    Raises:
        ValueError: The tokenizer has no <s>.
    """
    loaded = Tokenizer.from_file(str(tokenizer))
    start = loaded.token_to_id("<s>")
    if start is None:
        raise ValueError(f"{tokenizer} has no token <s>")
    loaded.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    with replacing(out) as part:
        for file in model.iterdir():
            (part / file.name).symlink_to(file.resolve())
        loaded.save(str(part / "tokenizer.json"))
        (part / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG, indent=2) + "\n")


def main(
    model: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="LlamaForCausalLM directory.")],
    tokenizer: Annotated[Path, typer.Option(exists=True, help="tokenizer.json.")],
    out: Annotated[Path, typer.Option(help="Directory to make.")],
) -> None:
    """Put model and tokenizer side by side for quantisation with calibration texts."""
    try:
        calibration_model(model, tokenizer, out)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
