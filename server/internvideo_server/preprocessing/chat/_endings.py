"""The tokens that end an answer, as the engine is told them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from internvideo_server.errors import invalid

from ._tokenizer import ChatTokenizer

MAX_STOP_TOKEN_IDS = 64  # vLLM takes 128 with min_tokens, the model's own among them


@dataclass(frozen=True)
class Endings:
    """Token ids.

    Attributes:
        end_id: Ends an answer and is never shown; -1: none does.
        pad_id: Fills up tensors.
        stop_words: Other sequences of tokens that end an answer.
    """

    end_id: int
    pad_id: int
    stop_words: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: ChatTokenizer) -> Endings:
        """InternVL2.5's: its template ends an answer with ``<|im_end|>``; the other control tokens that can follow end it too."""
        end, pad, turn = (tokenizer.token_id(name) for name in ("<|im_end|>", "</s>", "<|im_start|>"))
        return cls(end, pad, ((pad,), (turn,)))

    def asked(self, stop_token_ids: Sequence[int], vocab_size: int, *, ignore_eos: bool) -> Endings:
        """Those of one request.

        Args:
            stop_token_ids: End it, too.
            vocab_size: The engine's.
            ignore_eos: The model's own endings do not end it.

        Raises:
            ServingError: INVALID_ARGUMENT: too many ids, or one outside the vocabulary.
        """
        if len(stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise invalid(f"{len(stop_token_ids)} stop_token_ids, at most {MAX_STOP_TOKEN_IDS} are possible", "stop_token_ids")
        if strange := [i for i in stop_token_ids if not 0 <= i < vocab_size]:
            raise invalid(f"stop_token_ids must be within 0 .. {vocab_size - 1}, got {strange[0]}", "stop_token_ids")
        more = tuple((int(i),) for i in stop_token_ids)
        if ignore_eos:
            return Endings(-1, self.pad_id, more)
        return replace(self, stop_words=(*self.stop_words, *more))


def word_list(words: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    """Words of token ids -> TensorRT-LLM's int32 [2, L]: all tokens, and each word's end padded with -1."""
    tokens = [token for word in words for token in word]
    ends = np.cumsum([len(word) for word in words]).tolist()
    return np.array([tokens, ends + [-1] * (len(tokens) - len(ends))], np.int32).reshape(2, -1)
