"""Encoding text without ever letting a user's words become control tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer


class ChatTokenizer:
    """The checkpoint's ``tokenizer.json`` taken apart: text on one side, control tokens by name on the other.

    Control tokens are the special ones (``<s>``, ``<|im_end|>``, ...) and those added behind the sentencepiece vocabulary
    (``<img>``, ``<box_begin>``, ...). Only ``token_id`` gives their ids; in a text they are plain characters.
    """

    def __init__(self, document: dict[str, Any]) -> None:  # the JSON of tokenizer.json
        vocab_size = len(document["model"]["vocab"])
        added = document["added_tokens"]
        control = [token for token in added if token["special"] or token["id"] >= vocab_size]
        self._control: dict[str, int] = {token["content"]: token["id"] for token in control}
        self._vocab_size: int = vocab_size + sum(token["id"] >= vocab_size for token in added)
        # What is not an added token is not looked for: the rest (sentencepiece's user-defined pieces) still is.
        pieces = [token for token in added if token["content"] not in self._control]
        self._text = Tokenizer.from_str(json.dumps(document | {"added_tokens": pieces}))
        self._longest_piece = max(map(len, self._text.get_vocab()))

    @classmethod
    def from_file(cls, path: Path) -> ChatTokenizer:
        """Load a ``tokenizer.json`` made by ``build_scripts/export_tokenizer.py``.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no such file.
        """
        try:
            return cls(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError:
            raise
        except Exception as error:  # tokenizers raises Exception itself
            raise ValueError(f"{path} is not a tokenizer.json: {error!r}") from error

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included: one more than the largest."""
        return self._vocab_size

    def token_id(self, control_token: str) -> int:
        """The id of a control token, such as ``<|im_end|>``.

        Raises:
            KeyError: The tokenizer has no such control token.
        """
        return self._control[control_token]

    def encode_text(self, text: str) -> list[int]:
        """Encode as sentencepiece does, without ``<s>``; a control token's name becomes ids that decode to its characters."""
        # A batch, because `encode` keeps the interpreter lock: a long text would stop every other request meanwhile.
        ids: list[int] = self._text.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def fewest_tokens(self, text: str) -> int:
        """What a text has at least, known without encoding it."""
        return -(-len(text) // self._longest_piece)
