"""Make xgrammar's tokenizer description, which guided decoding in NVIDIA's C++ backend reads.

The form is that of TensorRT-LLM's ``examples/generate_xgrammar_tokenizer_info.py``: the pieces in the order of their ids, the
``tokenizer.json`` as a string, and the ids that end an answer. Tokens without text of their own (control tokens) are written as
"", which makes xgrammar treat them as special: no grammar lets them into an answer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from internvideo_server.checkpoint import Checkpoint


def grammar_info(tokenizer: Tokenizer, end_token_ids: list[int], vocab_size: int) -> dict[str, Any]:
    """The document for a tokenizer.

    Args:
        tokenizer: The engine's.
        end_token_ids: Allowed where the grammar is complete.
        vocab_size: Of the language model; ids without a piece are special, too.

    Raises:
        ValueError: The tokenizer has ids beyond the vocabulary.
    """
    pieces = tokenizer.get_vocab(with_added_tokens=True)
    if (last := max(pieces.values())) >= vocab_size:
        raise ValueError(f"the tokenizer goes up to id {last}, beyond the model's vocabulary of {vocab_size}")
    control = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    encoded = [""] * vocab_size
    for piece, i in pieces.items():
        if i not in control or i in end_token_ids:
            encoded[i] = piece
    return {"encoded_vocab": encoded, "tokenizer_str": tokenizer.to_str(), "stop_token_ids": end_token_ids}


def export_grammar(checkpoint: Path, tokenizer: Path, out: Path) -> None:
    """Write the file; it appears whole or not at all.

    Raises:
        CheckpointError: The checkpoint is broken.
        ValueError: The tokenizer does not fit it.
    """
    source = Checkpoint.open(checkpoint)
    document = grammar_info(Tokenizer.from_file(str(tokenizer)), list(source.end_token_ids), source.llm_config["vocab_size"])
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(document), encoding="utf-8")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
