"""``X-Request-Id``, in and out, and in every line of the log."""

from __future__ import annotations

import logging
import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_VALID = re.compile(r"[A-Za-z0-9._:/-]{1,128}\Z")
_current: ContextVar[str] = ContextVar("request_id", default="-")


class RequestIds:
    """Middleware: the client's id, or a new one, is answered and logged. HEAD is answered as GET without a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _VALID.match(given) else uuid.uuid4().hex
        _current.set(request_id)
        # A copy: the server looks at its own to know that a HEAD has no body.
        scope = {**scope, "internvideo.request_id": request_id, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self._app(scope, receive, send_with_id)


def current_request_id() -> str:
    """Of the request at work; ``-``: none."""
    return _current.get()


class RequestIdFilter(logging.Filter):
    """Gives each log record ``request_id``."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add it."""
        record.request_id = current_request_id()
        return True
