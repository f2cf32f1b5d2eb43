"""All answers of one request: what comes from the chain, sorted by sequence, counted and timed. Knows no JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from internvideo_client.adapter.http import trace_models, tracing
from internvideo_client.detokenizer import Vocabulary
from internvideo_client.errors import ApiError
from internvideo_client.protocol import GenerationFields
from internvideo_client.timings import prompt_details, stage_timings
from internvideo_client.triton import Generation

from ._sequence import AnswerSequence, Piece

_REPORT_AFTER_S = 0.25  # from the first token: many first tokens at once do not wait for one another's reports
_REPORT_WAIT_S = 0.3
_GUIDE_INPUTS = ("guided_decoding_guide", "guided_decoding_guide_type")

#: What has come at once: the number of a sequence and what is new of it; empty: nothing for a while.
Pieces = list[tuple[int, Piece]]


class Answer:
    """State of one request's answers.

    Args:
        vocabulary: The engine's.
        request: What was asked.
        generation: The work, not begun.
        context_length: Most tokens of prompt and answer together; what is left of it bounds an answer.
        token_limit: Most tokens of an answer; None: what is left.
        want_entries: Whether log probabilities were asked for.
        guide_field: Of the request, the one that asks for a grammar: the engine's faults of it name that field.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        request: GenerationFields,
        generation: Generation,
        context_length: int,
        token_limit: int | None,
        want_entries: bool,
        guide_field: str | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self._guide_field = guide_field
        self.sequences = [AnswerSequence(vocabulary, request, want_entries) for _ in range(request.sequences)]
        self.generation = generation
        self.prompt_tokens = 0
        self._token_limit = token_limit
        self._context_length = context_length
        self._began = time.monotonic()
        self._first_token_s: float | None = None
        self._report: asyncio.Task[dict[str, Any]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.report_wanted = True  # it is a request of its own
        self.timings: dict[str, Any] = {}

    async def pieces(self, heartbeat_s: float | None = None) -> AsyncGenerator[Pieces]:
        """The answers as they come; the work ends in every stage when this generator is closed before its end.

        Args:
            heartbeat_s: Yield an empty list after so many seconds of silence.
        """
        try:
            async with self.generation as work:
                async for batches in work.batches(heartbeat_s):
                    found: Pieces = []
                    for batch in batches:
                        self.prompt_tokens = batch.prompt_tokens or self.prompt_tokens
                        if batch.sequence < len(self.sequences):
                            found.append((batch.sequence, self.sequences[batch.sequence].push(batch)))
                    if self._first_token_s is None and self.completion_tokens:
                        self._first_token_s = time.monotonic() - self._began
                        if self.report_wanted:
                            self._timer = asyncio.get_running_loop().call_later(_REPORT_AFTER_S, self._ask_report)
                    if found or not batches:
                        yield found
                    if all(sequence.stopped for sequence in self.sequences):
                        break
            yield [(number, sequence.finish()) for number, sequence in enumerate(self.sequences)]
            if self.report_wanted or tracing():
                await self._read_report()
        except ApiError as error:
            if error.param in _GUIDE_INPUTS and self._guide_field is not None:
                error.param = self._guide_field
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _ask_report(self) -> asyncio.Task[dict[str, Any]]:
        if self._timer is not None:
            self._timer.cancel()
        self._report = self._report or self.generation.ask_report()
        return self._report

    async def _read_report(self) -> None:
        ended_at = time.monotonic()
        report = self._ask_report()
        done, _ = await asyncio.wait((report,), timeout=_REPORT_WAIT_S)
        known = report.result() if done and not report.exception() else {}
        self.timings = stage_timings(known, self._first_token_s)
        first_token_at = None if self._first_token_s is None else self._began + self._first_token_s
        trace_models(known, self.generation.request_id, first_token_at, (self.prompt_tokens, self.completion_tokens), ended_at)

    @property
    def completion_tokens(self) -> int:
        """Of all answers."""
        return sum(sequence.tokens for sequence in self.sequences)

    def finish_reason(self, number: int) -> str:
        """``length`` when the limit ended it, not a stop string, a stop token or the end token."""
        sequence = self.sequences[number]
        left = self._context_length - self.prompt_tokens
        limit = left if self._token_limit is None else min(self._token_limit, left)
        return "length" if sequence.tokens >= limit and not sequence.ended_by_itself() else "stop"

    def usage(self) -> dict[str, Any]:
        """Token counts, the prompt's with the visual tokens (16 a frame), and at the end where the time went."""
        counts: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        if details := prompt_details(self.timings):
            counts["prompt_tokens_details"] = details
        return counts | {"internvideo": self.timings}
