"""Prometheus metrics of the adapter; Triton has its own."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from internvideo_client.errors import ApiError
from internvideo_client.run_state import RunState
from internvideo_client.triton import CHAIN, TRITON

from ._pace import Pace
from .generation import Answer, Pieces

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SHARED = "PROMETHEUS_MULTIPROC_DIR"  # the adapter's processes of one server add up


class Metrics:
    """The counters of one app; requests that are refused before they reach Triton are not among them."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.pace = Pace()
        self.requests = Counter(
            "internvideo_requests", "Chat requests by HTTP status, as they ended", ["status"], registry=self.registry
        )
        self.in_flight = Gauge(
            "internvideo_requests_in_flight", "Chat requests at work", registry=self.registry, multiprocess_mode="livesum"
        )
        self.first_token = Histogram(
            "internvideo_time_to_first_token_seconds",
            "From the parsed request to its first token",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter("internvideo_prompt_tokens", "Prompt tokens, visual ones included", registry=self.registry)
        self.completion_tokens = Counter("internvideo_completion_tokens", "Generated tokens", registry=self.registry)

    async def watch(self, answer: Answer, heartbeat_s: float | None = None) -> AsyncGenerator[Pieces]:
        """The answer's pieces, counted: 499 is a client that went away."""
        start, status = time.monotonic(), 499
        with self.in_flight.track_inprogress():
            try:
                async with aclosing(answer.pieces(heartbeat_s)) as pieces:
                    async for piece in pieces:
                        if start and answer.completion_tokens:
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
                self.pace.ended()
                self.requests.labels(status).inc()
                self.prompt_tokens.inc(answer.prompt_tokens)
                self.completion_tokens.inc(answer.completion_tokens)

    def render(self, run: RunState | None = None) -> bytes:
        """The text exposition format, of all processes of the adapter.

        Args:
            run: What the launcher tells of the run's health, where there is one.
        """
        everybody = self.registry
        if os.environ.get(_SHARED):
            everybody = CollectorRegistry()
            MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        return generate_latest(everybody) + (b"" if run is None else _of_run(run))


def _of_run(run: RunState) -> bytes:
    """Each process knows the same, so these are not added up."""
    registry = CollectorRegistry()
    Gauge("internvideo_serving", "1 while every part of the server is up", registry=registry).set(run.status == "serving")
    deaths = Counter("internvideo_deaths", "Times that a program or a model's process died", ["name"], registry=registry)
    for name in (TRITON, *CHAIN, "adapter"):
        deaths.labels(name)
    for name, count in run.deaths_by_name.items():
        deaths.labels(name).inc(count)
    return generate_latest(registry)
