"""A pure ASGI middleware that bounds request bodies, by their header and by what really comes."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._errors import ApiError


class BodyLimit:
    """Answers 413 to a body of more than `max_bytes` bytes, without reading it where its header tells the size."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = ApiError(413, f"the request body is larger than {self._max_bytes} bytes", None, "request_too_large")
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            response = JSONResponse(error.body, error.status, {"Connection": "close"})
            await response(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                # The kind of exception that FastAPI lets through while it reads a body.
                raise HTTPException(error.status, error.message, {"Connection": "close"})
            return message

        await self._app(scope, limited, send)
