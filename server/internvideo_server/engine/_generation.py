"""What one answer has produced so far, and what of it a response shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .request import GenerationRequest
from .sequence_state import SequenceState


@dataclass(frozen=True)
class Output:
    """One response. Streaming: the new tokens only; else the prompt (unless excluded) and all tokens.

    ``log_probs`` are those of all generated tokens in both cases, as NVIDIA's backend has it; the two of ``top`` belong to the
    generated tokens of this response.
    """

    output_ids: npt.NDArray[np.int32]  # [tokens]
    log_probs: npt.NDArray[np.float32] | None  # [generated]; where the request asked for them
    final: bool
    num_input_tokens: int | None  # where the request asked for it
    top_logprob_ids: npt.NDArray[np.int32] | None = None  # [new, num_top_logprobs]; -1: no such token
    top_logprobs: npt.NDArray[np.float32] | None = None  # [new, num_top_logprobs]
    sequence_index: int | None = None  # where the request asked for several answers


class Generation:
    """Turns the manager's growing token list into responses by the backend's rules.

    The end id never shows, a matched stop word does; both end the answer.

    Args:
        request: The request.
        state: Of this answer.
        index: Which of the request's answers it is.
    """

    def __init__(self, request: GenerationRequest, state: SequenceState, index: int = 0) -> None:
        self.request, self.state = request, state
        self._index = index if request.num_sequences > 1 else None
        self._tokens: list[int] = []  # generated, without the end id
        self._shown = 0
        self._read = 0  # of the manager's list
        self._ended = False

    def advance(self, tokens: list[int], *, finished: bool) -> Output | None:
        """Take the manager's tokens so far.

        Args:
            tokens: All that it generated, the end id included.
            finished: It generates no more.

        Returns:
            The response to send now, if one is due; ``final`` says that the answer needs no more tokens.
        """
        for token in tokens[self._read :]:
            self._read += 1
            complete_at = self.state.complete_at
            self._ended = token == self.state.params.end_id or (complete_at is not None and len(self._tokens) >= complete_at)
            if not self._ended:
                self._tokens.append(token)
                self._ended = any(tuple(self._tokens[-len(word) :]) == word for word in self.request.stop_words)
            if self._ended:
                break
        return self.output(final=finished or self._ended)

    def output(self, *, final: bool) -> Output | None:
        """The response that shows what has not been shown, or None where nothing is to be sent."""
        if not final and (not self.request.streaming or self._shown == len(self._tokens)):
            return None
        first, count = (self._shown if self.request.streaming else 0), len(self._tokens)
        self._shown = count
        ids = np.array(self._tokens[first:], np.int32)
        if not self.request.streaming and not self.request.exclude_input:
            ids = np.concatenate([self.request.input_ids, ids])
        params = self.state.params
        top_ids = top_log_probs = None
        if width := params.num_top_logprobs:
            top = self.state.top_logprobs[first:count]
            top_ids = np.full((len(top), width), -1, np.int32)
            top_log_probs = np.full((len(top), width), -np.inf, np.float32)
            for row, (some_ids, some_log_probs) in enumerate(top):  # fewer than `width` in a tiny vocabulary
                top_ids[row, : len(some_ids)], top_log_probs[row, : len(some_ids)] = some_ids, some_log_probs
        return Output(
            ids,
            # The sampler may be ahead, and counts the end id too.
            np.array(self.state.log_probs[:count], np.float32) if params.return_log_probs else None,
            final,
            len(self.request.input_ids) if self.request.return_num_input_tokens else None,
            top_ids,
            top_log_probs,
            self._index,
        )
