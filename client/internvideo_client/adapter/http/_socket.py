"""uvicorn's HTTP protocol with deadlines: whoever sends slowly, or nothing, does not keep a connection."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEADER_BYTES = 64 * 1024
_TICK_S = 1.0  # of the check of a body's rate


@dataclass
class SocketLimits:
    """Of one process.

    Attributes:
        connections: Open at once.
        headers_s: From the connection, or the last answer's end with something sent, to the end of the headers.
        body_silence_s: Longest time without a byte of a body that is waited for.
        body_bytes_per_s: Least rate of a body, over its whole time.
    """

    connections: int = 1024
    headers_s: float = 15.0
    body_silence_s: float = 30.0
    body_bytes_per_s: int = 1024


def guarded_protocol(limits: SocketLimits) -> type[HttpToolsProtocol]:
    """The class to give to uvicorn as ``http``."""

    class Guarded(HttpToolsProtocol):
        """One connection."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer: asyncio.TimerHandle | None = None
            self._header_bytes = self._beside_bytes = 0
            self._reading_body = False
            if len(self.connections) > limits.connections:
                self._close(503, "the server has as many connections as it may: try again in a moment")
                return
            self._start(limits.headers_s)

        def data_received(self, data: bytes) -> None:
            if self._reading_body:
                self._body_bytes += len(data)
                self._beside_bytes += len(data)
                self._heard = self.loop.time()
            else:  # perhaps of the request behind the one under way
                self._header_bytes += len(data)
                if self._timer is None and self._waits_for_headers():
                    self._start(limits.headers_s)  # the next request on a connection that is kept
            super().data_received(data)
            if (self._beside_bytes if self._reading_body else self._header_bytes) > _MOST_HEADER_BYTES:
                self._close(431, "the request's headers, or what stands beside its body, are too large")

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._reading_body:  # a trailer is nobody's: as a header it would come after all checks
                super().on_header(name, value)

        def on_body(self, body: bytes) -> None:
            self._beside_bytes = 0  # trailers and extensions of chunks are what has no end but this
            super().on_body(body)

        def on_headers_complete(self) -> None:
            self._stop()
            self._reading_body = True
            self._header_bytes = self._body_bytes = self._beside_bytes = 0
            self._begun = self._heard = self.loop.time()
            self._allowed_s = limits.body_silence_s
            self._start(_TICK_S, self._check_body)
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._reading_body = False
            self._stop()
            super().on_message_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _waits_for_headers(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _start(self, seconds: float, then: Any = None) -> None:
            self._timer = self.loop.call_later(seconds, then or self._late)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _check_body(self) -> None:
            self._timer = None
            if not self._reading_body or self.transport.is_closing():
                return
            now = self.loop.time()
            if self.flow.read_paused or self.cycle is None or self.cycle.response_started:
                # The app is slow, not the client; or it has answered already.
                self._begun += _TICK_S
                self._heard = now
            elif now - self._heard > limits.body_silence_s or self._too_slow(now):
                self._late()
                return
            self._start(_TICK_S, self._check_body)

        def _too_slow(self, now: float) -> bool:
            seconds = now - self._begun - limits.body_silence_s
            return seconds > 0 and self._body_bytes < seconds * limits.body_bytes_per_s

        def _late(self) -> None:
            self._timer = None
            self._close(408, "the request did not come in time")

        def _close(self, status: int, message: str) -> None:
            if self.transport.is_closing():
                return
            self._stop()
            if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
                kind = "server_error" if status >= 500 else "invalid_request_error"
                code = {408: "timeout", 431: "headers_too_large", 503: "too_many_connections"}[status]
                error = {"message": message, "type": kind, "param": None, "code": code}
                body = json.dumps({"error": error}).encode()
                reason = {408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}[status]
                retry = "Retry-After: 1\r\n" if status == 503 else ""
                head = (
                    f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{retry}"
                    "Connection: close\r\n\r\n"
                )
                self.transport.write(head.encode() + body)
            self.transport.close()

    return Guarded
