"""One of a request's answers: tokens to text, stop strings, log probabilities, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from internvideo_client.detokenizer import StopMatcher, TokenDecoder, Vocabulary
from internvideo_client.protocol import GenerationFields
from internvideo_client.triton import TokenBatch


@dataclass(slots=True)
class TokenEntry:
    """What ``logprobs`` tells of one token: ``at`` is where its text begins, ``end`` where it ends, in characters."""

    token_id: int
    log_prob: float
    top: Sequence[tuple[int, float]]
    at: int
    end: int


@dataclass(slots=True)
class Piece:
    """What a batch of tokens adds to an answer."""

    text: str = ""
    entries: list[TokenEntry] = field(default_factory=list)


class AnswerSequence:
    """State of one answer.

    Args:
        vocabulary: The engine's.
        request: What was asked.
        want_entries: Whether log probabilities were asked for.

    Attributes:
        tokens: Generated so far.
        log_prob: Their sum, where log probabilities came.
        stopped: Whether it ended by a stop string or a stop token; tokens that come later are not its own.
        stop_reason: vLLM's: the stop string or the id of the stop token that ended it.
    """

    def __init__(self, vocabulary: Vocabulary, request: GenerationFields, want_entries: bool) -> None:
        self._vocabulary = vocabulary
        self._decoder = TokenDecoder(vocabulary, keep_special=request.skip_special_tokens is False)
        self._matcher = StopMatcher(request.stop or [], include=bool(request.include_stop_str_in_output))
        self._stop_ids = frozenset(request.stop_token_ids or ())
        self._include_stop = bool(request.include_stop_str_in_output)
        self._ignore_eos = bool(request.ignore_eos)
        self._want_entries = want_entries
        self._decoded = 0  # characters that the tokens made
        self._sent = 0  # characters that left
        self._held: list[TokenEntry] = []
        self._last_is_special = False
        self.tokens = 0
        self.log_prob = 0.0
        self.stopped = False
        self.stop_reason: str | int | None = None

    def push(self, batch: TokenBatch) -> Piece:
        """What a batch adds."""
        text = ""
        for position, token_id in enumerate(batch.token_ids):
            if self.stopped:
                break
            text += self._push_token(token_id, batch, position)
        return self._piece(text)

    def finish(self) -> Piece:
        """What was held back, at the end of the stream."""
        if self.stopped:
            return Piece()
        text = self._matcher.push(self._decoder.flush()) + self._matcher.flush()
        if self._matcher.stopped:
            self.stopped, self.stop_reason = True, self._matcher.found
        piece = self._piece(text)
        if not self.stopped:
            piece.entries += self._held
            self._held = []
        return piece

    def ended_by_itself(self) -> bool:
        """Whether a stop string, a stop token or an end token ended it, rather than a limit."""
        return self.stopped or self._last_is_special

    def _push_token(self, token_id: int, batch: TokenBatch, position: int) -> str:
        self.tokens += 1
        is_stop = token_id in self._stop_ids
        self._last_is_special = token_id in self._vocabulary.special and not self._ignore_eos
        decoded = "" if is_stop and not self._include_stop else self._decoder.push(token_id)
        if position < len(batch.log_probs):
            self.log_prob += batch.log_probs[position]
            if self._want_entries:
                top = batch.top[position] if position < len(batch.top) else ()
                end = self._decoded + len(decoded)
                self._held.append(TokenEntry(token_id, batch.log_probs[position], top, self._decoded, end))
        self._decoded += len(decoded)
        text = self._matcher.push(decoded)
        if self._matcher.stopped:
            self.stopped, self.stop_reason = True, self._matcher.found
        elif is_stop:
            text += self._matcher.push(self._decoder.flush()) + self._matcher.flush()
            self.stopped, self.stop_reason = True, token_id
        return text

    def _piece(self, text: str) -> Piece:
        self._sent += len(text)
        if not self._held:
            return Piece(text)
        # A token leaves with the last of its characters; one without any (half a character) with the next that has some.
        out = [n for n, entry in enumerate(self._held, 1) if entry.at < entry.end <= self._sent]
        count = out[-1] if out else 0
        if self.stopped:  # a token that the end cuts in two still belongs to the text
            count = sum(entry.at < self._sent for entry in self._held)
        piece = Piece(text, self._held[:count])
        self._held = [] if self.stopped else self._held[count:]
        return piece
