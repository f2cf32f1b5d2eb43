"""What the adapter is told at its start."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from .._protocol import MAX_BODY_BYTES


@dataclass(frozen=True)
class AdapterSettings:
    """Settings of one adapter process.

    Attributes:
        triton: ``HOST:PORT`` of Triton's gRPC endpoint.
        tokenizer: The engine directory's ``tokenizer.json``; the engine's ``config.json`` stands beside it.
        model_id: The one model that clients name.
        max_body_bytes: Largest request body; a video in a ``data:`` URL takes 4/3 of its size.
        request_timeout_s: Longest time for a whole request, from the fetch of its media to its last token.
        first_token_timeout_s: Longest silence of the chain before its first response; None: the whole request's time.
        inactivity_timeout_s: Longest silence between two responses.
    """

    triton: str
    tokenizer: Path
    model_id: str = "InternVideo2_5"
    max_body_bytes: int = MAX_BODY_BYTES
    request_timeout_s: float = 300.0
    first_token_timeout_s: float | None = None
    inactivity_timeout_s: float = 60.0

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer for decoding answers.

        Raises:
            OSError, ValueError: The file is missing or broken.
        """
        return Tokenizer.from_str(self.tokenizer.read_text(encoding="utf-8"))

    def load_context_length(self) -> int:
        """The engine's max_seq_len: prompt and answer together.

        Raises:
            OSError, ValueError: ``config.json`` is missing or not an engine's.
        """
        config = self.tokenizer.with_name("config.json")
        try:
            return int(json.loads(config.read_text())["build_config"]["max_seq_len"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{config} is no engine config.json: {error!r}") from error
