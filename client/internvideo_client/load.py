"""A load client: many questions at once against any OpenAI server, and what their answers' streams measured.

Behind ``internvideo bench``, the benchmarks and the soak, so that all of them mean the same by a word.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx2

from .errors import ApiError
from .http_chat import Server, media_part, stream_async

__all__ = ["Figures", "Question", "Sample", "Server", "ask", "media_part", "percentile", "run"]


@dataclass(frozen=True)
class Question:
    """One request to repeat.

    Attributes:
        messages: OpenAI's, with media from :func:`media_part`.
        settings: Other fields of the request (``max_tokens``, ...).
    """

    messages: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Sample:
    """What one answer measured; seconds of ``time.perf_counter()``.

    Attributes:
        asked: When the request was sent.
        number: Of the question, among all that were asked.
        arrivals: When each piece of text came.
        ended: When the stream ended.
        usage: What the server says of tokens, and of its own stages.
        text: The answer.
        error: Why there is no whole answer.
    """

    asked: float
    number: int = 0
    arrivals: list[float] = field(default_factory=list)
    ended: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    error: ApiError | None = None

    @property
    def tokens(self) -> int:
        """Generated, as ``usage`` counts them."""
        return int(self.usage.get("completion_tokens", 0))

    @property
    def first_token_s(self) -> float:
        """From the request to the first text; NaN where none came."""
        return self.arrivals[0] - self.asked if self.arrivals else math.nan

    @property
    def gaps_s(self) -> list[float]:
        """Between two pieces of text."""
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals)]


async def ask(server: Server, question: Question, client: httpx2.AsyncClient | None = None, number: int = 0) -> Sample:
    """Ask once; a fault is part of the sample."""
    sample = Sample(time.perf_counter(), number)
    try:
        async with aclosing(stream_async(server, question.messages, question.settings, client)) as parts:
            async for part in parts:
                if part.text:
                    sample.arrivals.append(time.perf_counter())
                    sample.text += part.text
                sample.usage = part.usage or sample.usage
    except ApiError as error:
        sample.error = error
    sample.ended = time.perf_counter()
    return sample


async def run(
    server: Server,
    questions: Sequence[Question],
    streams: int,
    count: int,
    on_sample: Callable[[Sample], None] = lambda sample: None,
) -> list[Sample]:
    """Ask ``count`` questions, ``streams`` of them at a time, in turn.

    Args:
        server: Where.
        questions: Asked in turn, again from the first.
        streams: How many are under way at once; a new one begins as one ends.
        count: Of all.
        on_sample: Told each answer as it ends.

    Returns:
        The answers, in the order in which they ended.
    """
    numbers = iter(range(count))
    samples: list[Sample] = []

    async def one_stream(client: httpx2.AsyncClient) -> None:
        for number in numbers:
            sample = await ask(server, questions[number % len(questions)], client, number)
            samples.append(sample)
            on_sample(sample)

    limits = httpx2.Limits(max_connections=streams, max_keepalive_connections=streams)
    async with httpx2.AsyncClient(**server.options, limits=limits) as client, asyncio.TaskGroup() as tasks:
        for _ in range(min(streams, count)):
            tasks.create_task(one_stream(client))
    return samples


@dataclass(frozen=True)
class Figures:
    """The sum of a run; times in seconds."""

    streams: int
    answers: int
    errors: int
    first_token_p50: float
    first_token_p99: float
    between_tokens_p50: float
    between_tokens_p99: float
    answers_per_s: float
    tokens_per_s: float

    @classmethod
    def of(cls, streams: int, samples: Sequence[Sample]) -> Figures:
        """Sum up the samples of one run."""
        good = [sample for sample in samples if sample.error is None]
        span = max((s.ended for s in samples), default=0.0) - min((s.asked for s in samples), default=0.0)
        firsts = [sample.first_token_s for sample in good if sample.arrivals]
        gaps = [gap for sample in good for gap in sample.gaps_s]
        return cls(
            streams,
            len(good),
            len(samples) - len(good),
            percentile(firsts, 0.5),
            percentile(firsts, 0.99),
            percentile(gaps, 0.5),
            percentile(gaps, 0.99),
            len(good) / span if span else math.nan,
            sum(sample.tokens for sample in good) / span if span else math.nan,
        )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of the values do not exceed; NaN of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan
