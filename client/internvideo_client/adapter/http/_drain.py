"""Stopping without loss: the listener stays open, what is under way ends by itself or is told, then the server ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from internvideo_client.errors import ApiError, from_code

_TELL_S = 3.0  # for the last events to reach their clients, and the stops their models
_TICK_S = 0.05
_ALWAYS = ("/health/live", "/metrics")
STOPPING = "the server is stopping: ask another one, or again in a moment"

_log = logging.getLogger(__name__)


class Drain:
    """A pure ASGI middleware: counts what is under way, and once ``draining`` is set answers 503 to everything new."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.draining = False
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http" or scope["path"].startswith(_ALWAYS):
            await self._app(scope, receive, send)
            return
        if self.draining:
            error = from_code("UNAVAILABLE", STOPPING)
            await JSONResponse(error.body, error.status, {**error.headers, "Connection": "close"})(scope, receive, send)
            return
        self.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.in_flight -= 1


class DrainingServer(uvicorn.Server):
    """SIGTERM drains; SIGINT, or a second signal, ends at once. Both end with exit code 0.

    Args:
        config: uvicorn's, of the app that ``drain`` wraps.
        drain: The app's middleware.
        timeout_s: How long requests under way may go on after SIGTERM.
        end_all: Ends what is under way with this error.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, timeout_s: float, end_all: Callable[[ApiError], None]) -> None:
        super().__init__(config)
        self._drain, self._timeout_s, self._end_all = drain, timeout_s, end_all
        self._hurry = False
        self._ending: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGINT and SIGTERM."""
        self._hurry = self._hurry or sig == signal.SIGINT or self._drain.draining
        self._drain.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn calls this ten times a second, and ends when it is true."""
        if self._drain.draining and self._ending is None:
            _log.info("draining: %d requests under way", self._drain.in_flight)
            self._ending = asyncio.get_running_loop().create_task(self._end())
        return await super().on_tick(counter)

    async def _end(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while self._drain.in_flight and not self._hurry and time.monotonic() < deadline:
            await asyncio.sleep(_TICK_S)
        if self._drain.in_flight:
            _log.warning("%d requests did not end in time and are ended", self._drain.in_flight)
            self._end_all(from_code("UNAVAILABLE", STOPPING))
            deadline = time.monotonic() + _TELL_S
            while self._drain.in_flight and time.monotonic() < deadline:
                await asyncio.sleep(_TICK_S)
        self.should_exit = True
