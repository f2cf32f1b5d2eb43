"""``logprobs`` of chat and of text completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from internvideo_client.detokenizer import Vocabulary

from ._sequence import TokenEntry

_LEAST = -9999.0  # JSON has no infinity; OpenAI's own word for it


class LogProbWriter:
    """Writes the entries of tokens.

    Args:
        vocabulary: The engine's.
        count: Likeliest tokens to tell with each.
        as_ids: vLLM's return_tokens_as_token_ids: ``token_id:5`` for the text of a token.
    """

    def __init__(self, vocabulary: Vocabulary, count: int, as_ids: bool = False) -> None:
        self._vocabulary = vocabulary
        self._count = count
        self._as_ids = as_ids

    def chat(self, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        """OpenAI's ``logprobs`` of a chat's choice."""
        return {
            "content": [
                self._token(entry.token_id, entry.log_prob)
                | {"top_logprobs": [self._token(i, value) for i, value in entry.top[: self._count]]}
                for entry in entries
            ]
        }

    def completion(self, entries: Sequence[TokenEntry], offset: int = 0) -> dict[str, Any]:
        """OpenAI's older ``logprobs`` of a text completion; ``offset``: characters before the answer's text."""
        return {
            "tokens": [self.text(entry.token_id) for entry in entries],
            "token_logprobs": [_finite(entry.log_prob) for entry in entries],
            "top_logprobs": [
                {self.text(i): _finite(value) for i, value in [*entry.top[: self._count], (entry.token_id, entry.log_prob)]}
                for entry in entries
            ],
            "text_offset": [offset + entry.at for entry in entries],
        }

    def text(self, token_id: int) -> str:
        """A token's own text; half a character is U+FFFD."""
        if self._as_ids:
            return f"token_id:{token_id}"
        text: str = self._vocabulary.tokenizer.decode([token_id], skip_special_tokens=False)
        return text

    def _token(self, token_id: int, log_prob: float) -> dict[str, Any]:
        token = self._vocabulary.tokenizer.decode([token_id], skip_special_tokens=False)
        byte = self._vocabulary.byte_of.get(token_id)  # `token` is U+FFFD then: only bytes tell what the tokens make together
        return {
            "token": f"token_id:{token_id}" if self._as_ids else token,
            "logprob": _finite(log_prob),
            "bytes": list(token.encode()) if byte is None else [byte],
        }


def _finite(value: float) -> float:
    return max(value, _LEAST)
