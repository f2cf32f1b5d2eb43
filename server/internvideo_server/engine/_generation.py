"""What one request has produced so far, and what of it a response shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._request import GenerationRequest


@dataclass(frozen=True)
class Output:
    """One response. Streaming: the new tokens only; else the prompt (unless excluded) and all tokens.

    ``log_probs`` are those of all generated tokens in both cases, as NVIDIA's backend has it.
    """

    output_ids: npt.NDArray[np.int32]  # [tokens]
    log_probs: npt.NDArray[np.float32] | None  # [generated]; where the request asked for them
    final: bool
    num_input_tokens: int | None  # where the request asked for it


class Generation:
    """Turns the manager's growing token list into responses by the backend's rules.

    The end id never shows, a matched stop word does; both end the request.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
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
            The response to send now, if one is due; ``final`` says that the request needs no more tokens.
        """
        for token in tokens[self._read :]:
            self._read += 1
            self._ended = token == self.request.sampling.end_id
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
        shown = self._tokens[self._shown :] if self.request.streaming else self._tokens
        self._shown = len(self._tokens)
        ids = np.array(shown, np.int32)
        if not self.request.streaming and not self.request.exclude_input:
            ids = np.concatenate([self.request.input_ids, ids])
        sampling = self.request.sampling
        # The sampler may be ahead, and counts the end id too.
        log_probs = np.array(sampling.log_probs[: len(self._tokens)], np.float32) if sampling.return_log_probs else None
        count = len(self.request.input_ids) if self.request.return_num_input_tokens else None
        return Output(ids, log_probs, final, count)
