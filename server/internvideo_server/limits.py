"""The engine's limits: one home for both engines, ``config.json`` of the engine directory.

The form is ``trtllm-build``'s own (``build_config`` and ``pretrained_config``), so an engine built by TensorRT-LLM and the
directory that ``build_scripts/export_llm.py`` writes for the embedded engine are read alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Dynamic NTK scaling changes nothing up to the model's trained length, so the export drops it; beyond, positions would be wrong.
MAX_POSITIONS = 32768

# HiCo merges the tokens of 4 frames and leaves 16 of each: local_num_frames, and num_tome_tokens divided by it, literals in the
# model's own code.
FRAMES_PER_GROUP, TOKENS_PER_FRAME = 4, 16

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class LimitsError(ValueError):
    """The engine directory's config.json is missing, broken or asks for the impossible."""


@dataclass(frozen=True)
class EngineLimits:
    """What one engine can take. Lengths are in tokens.

    ``max_prompt_embedding_table_size`` is shared by the whole batch: a request may bring ``max_rows`` rows
    (TensorRT-LLM, promptTuningBuffers.cpp: table size // max_batch_size).
    """

    dtype: str  # "float32" | "float16" | "bfloat16"
    vocab_size: int
    hidden_size: int
    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    max_prompt_embedding_table_size: int

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENT_BYTES:
            raise LimitsError(f"the engine is {self.dtype}; known are {', '.join(ELEMENT_BYTES)}")
        if self.max_seq_len > MAX_POSITIONS:
            raise LimitsError(
                f"max_seq_len {self.max_seq_len} > {MAX_POSITIONS}: rope_scaling is exported as null, exact up to there"
            )
        if self.max_input_len >= self.max_seq_len:
            raise LimitsError(f"max_input_len {self.max_input_len} must be smaller than max_seq_len {self.max_seq_len}")

    @property
    def max_rows(self) -> int:
        """Rows of one request's prompt_embedding_table."""
        return self.max_prompt_embedding_table_size // self.max_batch_size

    @property
    def max_frames(self) -> int:
        """Frames of all of one request's videos, a multiple of 4."""
        return self.max_rows // (FRAMES_PER_GROUP * TOKENS_PER_FRAME) * FRAMES_PER_GROUP

    @classmethod
    def of(
        cls, dtype: str, vocab_size: int, hidden_size: int, max_batch_size: int, max_frames: int, max_seq_len: int
    ) -> EngineLimits:
        """Those of an embedded engine, whose only bounds are frames and tokens of prompt and answer together."""
        rows = max_batch_size * max_frames * TOKENS_PER_FRAME
        return cls(dtype, vocab_size, hidden_size, max_batch_size, max_seq_len - 1, max_seq_len, max_seq_len, rows)

    def of_length(self, max_frames: int, max_seq_len: int) -> EngineLimits:
        """The same embedded engine for requests of another length."""
        return self.of(self.dtype, self.vocab_size, self.hidden_size, self.max_batch_size, max_frames, max_seq_len)

    @property
    def element_bytes(self) -> int:
        """Of one value in ``dtype``."""
        return ELEMENT_BYTES[self.dtype]

    @property
    def table_bytes(self) -> int:
        """Of one request's largest prompt_embedding_table."""
        return self.max_rows * self.hidden_size * self.element_bytes

    @classmethod
    def from_engine_dir(cls, engine_dir: Path) -> EngineLimits:
        """Read ``config.json`` of an engine directory.

        Raises:
            LimitsError: The file is missing, is not JSON or lacks a field.
        """
        path = engine_dir / "config.json"
        try:
            document = json.loads(path.read_text())
            pretrained, build = document["pretrained_config"], document["build_config"]
            return cls(
                dtype=pretrained["dtype"],
                vocab_size=pretrained["vocab_size"],
                hidden_size=pretrained["hidden_size"],
                max_batch_size=build["max_batch_size"],
                max_input_len=build["max_input_len"],
                max_seq_len=build["max_seq_len"],
                max_num_tokens=build["max_num_tokens"],
                max_prompt_embedding_table_size=build["max_prompt_embedding_table_size"],
            )
        except FileNotFoundError as error:
            raise LimitsError(f"{path} does not exist: make the engine directory with build_scripts/export_llm.py") from error
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise LimitsError(f"{path} is not an engine config.json: {error!r}") from error

    def to_document(self) -> dict[str, Any]:
        """The ``config.json`` form."""
        return {
            "pretrained_config": {
                "architecture": "LlamaForCausalLM",
                "dtype": self.dtype,
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
            },
            "build_config": {
                "max_batch_size": self.max_batch_size,
                "max_input_len": self.max_input_len,
                "max_seq_len": self.max_seq_len,
                "max_num_tokens": self.max_num_tokens,
                "max_prompt_embedding_table_size": self.max_prompt_embedding_table_size,
            },
        }
