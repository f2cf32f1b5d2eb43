"""How to generate, as the ensemble's tensors. Names are TensorRT-LLM's; what it lacks is an optional input of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

_GREEDY_BELOW = 1e-5  # scores divided by much less are infinite in float32, and the answer is noise

GuideType = Literal["json", "json_schema", "regex", "ebnf_grammar"]


@dataclass(frozen=True)
class Guide:
    """A grammar that the answer follows.

    Attributes:
        type: TensorRT-LLM's ``guided_decoding_guide_type``.
        guide: The schema, expression or grammar; empty for ``json`` (any JSON object).
        field: Of the request that asks for it, for errors.
    """

    type: GuideType
    guide: str = ""
    field: str = "response_format"


@dataclass(frozen=True)
class SamplingParams:
    """How to generate, in TensorRT-LLM's own terms; None leaves the engine's default.

    Attributes:
        max_tokens: Most tokens to generate; None, or more than that: what is left of the context.
        temperature: None or less than 1e-5 is greedy.
        seed: Unsigned 64 bit.
        num_return_sequences: Answers of one prompt.
        log_probs: Whether each token's log probability is wanted.
        num_top_logprobs: Likeliest tokens to tell with each token.
        embedding_bias: Float32 [vocab_size], added to the logits.
        bad_words: Token ids of words that must not appear.
        stop_token_ids: Ids that end an answer.
        ignore_eos: Generate beyond the end token.
        guide: A grammar for the answer.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    num_return_sequences: int = 1
    log_probs: bool = False
    num_top_logprobs: int = 0
    embedding_bias: npt.NDArray[np.float32] | None = None
    bad_words: Sequence[Sequence[int]] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    guide: Guide | None = field(default=None)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """The ensemble's input tensors; scalars are [1, 1], the others have a leading batch dimension of 1."""
        scalars: dict[str, Any] = {
            "request_output_len": np.int32(-1 if self.max_tokens is None else self.max_tokens),
            "streaming": np.bool_(True),
            "return_num_input_tokens": np.bool_(True),
            "repetition_penalty": _optional(np.float32, self.repetition_penalty),
            "presence_penalty": _optional(np.float32, self.presence_penalty),
            "frequency_penalty": _optional(np.float32, self.frequency_penalty),
            "min_tokens": _optional(np.int32, self.min_tokens),
            "return_log_probs": np.bool_(True) if self.log_probs else None,
            "num_top_logprobs": np.int32(self.num_top_logprobs) if self.num_top_logprobs else None,
            "num_return_sequences": np.int32(self.num_return_sequences) if self.num_return_sequences > 1 else None,
            "ignore_eos": np.bool_(True) if self.ignore_eos else None,
        }
        if (self.temperature or 0.0) < _GREEDY_BELOW or self.top_p == 0:
            # TensorRT-LLM rewrites a temperature of 0 in its own way: greedy is top-k 1.
            scalars["runtime_top_k"] = np.int32(1)
        else:
            scalars["temperature"] = np.float32(self.temperature)
            scalars["runtime_top_k"] = np.int32(max(self.top_k or 0, 0))
            # Never left out: without top-k and top-p TensorRT-LLM takes the likeliest token, whatever the temperature.
            scalars["runtime_top_p"] = np.float32(1.0 if self.top_p is None else self.top_p)
            scalars["min_p"] = np.float32(self.min_p) if self.min_p else None
            scalars["seed"] = _optional(np.uint64, self.seed)
        tensors = {name: np.array([[value]]) for name, value in scalars.items() if value is not None}
        return tensors | dict(self._vectors())

    def _vectors(self) -> Mapping[str, npt.NDArray[Any]]:
        vectors: dict[str, npt.NDArray[Any]] = {}
        if self.embedding_bias is not None:
            vectors["embedding_bias"] = self.embedding_bias.astype(np.float32)[None]
        if self.bad_words:
            vectors["bad_words_list"] = _word_list(self.bad_words)[None]
        if self.stop_token_ids:
            vectors["stop_token_ids"] = np.array([self.stop_token_ids], np.int32)
        if self.guide is not None:
            vectors["guided_decoding_guide_type"] = _text(self.guide.type)
            if self.guide.guide:
                vectors["guided_decoding_guide"] = _text(self.guide.guide)
        return vectors


def _optional(kind: type, value: float | None) -> Any:
    return None if value is None else kind(value)


def _text(value: str) -> npt.NDArray[np.object_]:
    return np.array([[value.encode()]], np.object_)


def _word_list(words: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    """Words of token ids -> TensorRT-LLM's int32 [2, L]: all tokens, and each word's end padded with -1."""
    tokens = [token for word in words for token in word]
    ends = np.cumsum([len(word) for word in words]).tolist()
    return np.array([tokens, ends + [-1] * (len(tokens) - len(ends))], np.int32)
