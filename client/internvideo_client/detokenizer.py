"""Token ids to text, one id at a time, and stop strings matched on that text.

The text is the plain decode, without clean-up of spaces and without strip, so a streamed answer equals a plain one.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Vocabulary:
    """What decoding needs of a tokenizer, looked up once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.special = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.byte_of = {tokenizer.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}


class TokenDecoder:
    """Incremental decode of one answer; special tokens are dropped, unless they are asked for.

    Args:
        vocabulary: The tokenizer, or what was looked up in it.
        keep_special: Give special tokens as their names.

    Whole pieces go through `DecodeStream`. Byte pieces (``<0xE4>``) are put together here, because tokenizers' byte fallback
    judges a run of bytes as a whole: one wrong byte turns characters that were already sent into U+FFFD, where
    sentencepiece, the reference, spoils the wrong byte alone.
    """

    def __init__(self, vocabulary: Vocabulary | Tokenizer, keep_special: bool = False) -> None:
        vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary(vocabulary)
        self._tokenizer = vocabulary.tokenizer
        self._special = vocabulary.special
        self._byte_of = vocabulary.byte_of
        self._keep_special = keep_special
        self._bytes = b""  # of a character that is not complete
        self._held: list[int] = []  # whole pieces that DecodeStream keeps back: it takes a trailing U+FFFD for half a character
        self._stream = DecodeStream(skip_special_tokens=True)

    def byte_of(self, token_id: int) -> int | None:
        """The one byte of a byte piece, None for every other token."""
        return self._byte_of.get(token_id)

    def push(self, token_id: int) -> str:
        """The text that this token completes, "" while a character is not complete."""
        if token_id in self._special:
            return self.flush() + self._special[token_id] if self._keep_special else ""
        if (byte := self.byte_of(token_id)) is not None:
            text = self._release_held()
            self._bytes += bytes([byte])
            return text + self._take_characters(final=False)
        text = self._take_characters(final=True)
        self._held.append(token_id)
        if (piece := self._stream.step(self._tokenizer, token_id)) is not None:
            self._held.clear()
            text += piece
        return text

    def flush(self) -> str:
        """What is left at the end: incomplete characters, as U+FFFD."""
        return self._release_held() + self._take_characters(final=True)

    def _release_held(self) -> str:
        if not self._held:
            return ""
        text: str = self._tokenizer.decode(self._held, skip_special_tokens=True)
        self._held.clear()
        self._stream = DecodeStream(skip_special_tokens=True)
        return text

    def _take_characters(self, final: bool) -> str:
        """Complete characters at the head of the bytes; a byte that cannot begin one is U+FFFD, as in sentencepiece."""
        text = ""
        while self._bytes:
            size = _sequence_length(self._bytes[0])
            if not final and len(self._bytes) < size and all(byte & 0xC0 == 0x80 for byte in self._bytes[1:]):
                break
            try:
                text += self._bytes[:size].decode()
            except UnicodeDecodeError:
                text, size = text + _REPLACEMENT, 1
            self._bytes = self._bytes[size:]
        return text


class StopMatcher:
    """Ends a text at the first stop string and never lets a part of one out.

    First is the one that is complete first, so the result does not depend on how the text is cut into chunks.

    Args:
        stop: The strings.
        include: Whether the text has the stop string that ends it.

    Attributes:
        stopped: Whether a stop string is complete.
        found: Which one.
    """

    def __init__(self, stop: Sequence[str], include: bool = False) -> None:
        self._stop = stop
        self._include = include
        self._pending = ""
        self.stopped = False
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The part of the text so far that can be sent; sets `stopped` when a stop string is complete."""
        if not self._stop:
            return text
        self._pending += text
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            end, start, self.found = min(found)
            return self._take(end if self._include else start)
        return self._take(len(self._pending) - self._partial_match())

    def flush(self) -> str:
        """What was held back, when the text ended without a stop string."""
        return "" if self.stopped else self._take(len(self._pending))

    def _take(self, size: int) -> str:
        text, self._pending = self._pending[:size], self._pending[size:]
        return text

    def _partial_match(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(self._pending), max(map(len, self._stop), default=0))
        ends = (size for size in range(longest, 0, -1))
        return next((n for n in ends if any(stop.startswith(self._pending[-n:]) for stop in self._stop)), 0)


def _sequence_length(first: int) -> int:
    """Length of the UTF-8 sequence that this byte begins, 1 for one that begins none."""
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4 if first < 0xF8 else 1
