"""What a client of Triton reads of the engine directory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME


@dataclass(frozen=True)
class EngineFacts:
    """What is known of the engine.

    Attributes:
        name: For messages: ``embedded engine`` or ``TensorRT-LLM 1.2.1``.
        digest: Of its config.json.
        context_length: Most tokens of prompt and answer together.
        vocab_size: Token ids.
        max_frames: Most frames of one request; 0: not known.
    """

    name: str
    digest: str
    context_length: int
    vocab_size: int
    max_frames: int


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer for decoding answers.

    Raises:
        OSError, ValueError: The file is missing or broken.
    """
    return Tokenizer.from_str(path.read_text(encoding="utf-8"))


def load_engine(tokenizer: Path) -> EngineFacts:
    """The facts from the ``config.json`` beside the tokenizer.

    Raises:
        OSError, ValueError: ``config.json`` is missing or not an engine's.
    """
    config = tokenizer.with_name("config.json")
    raw = config.read_bytes()
    try:
        document = json.loads(raw)
        build, pretrained = document["build_config"], document.get("pretrained_config", {})
        context_length = int(build["max_seq_len"])
        rows = build.get("max_prompt_embedding_table_size", 0) // build.get("max_batch_size", 1)
        version = document.get("version")  # trtllm-build writes it
    except (KeyError, TypeError) as error:
        raise ValueError(f"{config} is not an engine config.json: {error!r}") from error
    return EngineFacts(
        f"TensorRT-LLM {version}" if version else "embedded engine",
        hashlib.sha256(raw).hexdigest(),
        context_length,
        pretrained.get("vocab_size") or load_tokenizer(tokenizer).get_vocab_size(),
        rows // (FRAMES_PER_GROUP * TOKENS_PER_FRAME) * FRAMES_PER_GROUP,
    )
