"""Prometheus metrics of the adapter; Triton has its own."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .._errors import ApiError
from ._answer import Answer, Piece

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The counters of one app; requests that are refused before they reach Triton are not among them."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "internvideo_requests", "Chat requests by HTTP status, as they ended", ["status"], registry=self.registry
        )
        self.in_flight = Gauge("internvideo_requests_in_flight", "Chat requests at work", registry=self.registry)
        self.first_token = Histogram(
            "internvideo_time_to_first_token_seconds",
            "From the parsed request to its first token",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter("internvideo_prompt_tokens", "Prompt tokens, visual ones included", registry=self.registry)
        self.completion_tokens = Counter("internvideo_completion_tokens", "Generated tokens", registry=self.registry)

    async def watch(self, answer: Answer) -> AsyncGenerator[Piece]:
        """The answer's pieces, counted: 499 is a client that went away."""
        start, status = time.monotonic(), 499
        with self.in_flight.track_inprogress():
            try:
                async with aclosing(answer.pieces()) as pieces:
                    async for piece in pieces:
                        if start and answer.usage.completion_tokens:
                            self.first_token.observe(time.monotonic() - start)
                            start = 0.0
                        yield piece
                status = 200
            except ApiError as error:
                status = error.status
                raise
            except Exception:
                status = 500
                raise
            finally:
                self.requests.labels(status).inc()
                self.prompt_tokens.inc(answer.usage.prompt_tokens)
                self.completion_tokens.inc(answer.usage.completion_tokens)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)
