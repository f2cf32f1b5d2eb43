"""Every fault as OpenAI's error object."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from internvideo_client.errors import ApiError

from ._context import context_of
from .http import ClientGoneError
from .routes import with_pace

_CODES = {404: "unknown_path", 405: "method_not_allowed", 413: "request_too_large", 400: "invalid_argument"}


def add_error_handlers(app: FastAPI) -> None:
    """Register them."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(ClientGoneError, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)


def _render(error: ApiError) -> JSONResponse:
    headers = dict(error.headers)
    if error.status in (408, 413, 503):  # the body may not have been read to its end
        headers["Connection"] = "close"
    return JSONResponse(error.body, error.status, headers)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - Starlette's signature is wider than what it calls this with
    return _render(with_pace(context_of(request), error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)  # noqa: S101
    response = _render(ApiError(error.status_code, error.detail, code=_CODES.get(error.status_code)))
    response.headers.update(error.headers or {})
    if error.status_code == 405:  # Starlette tells the methods of one route; a path can have several
        response.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in matching for method in getattr(route, "methods", None) or ()}


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for the access log: nobody reads it


async def _on_bug(request: Request, error: Exception) -> Response:
    return _render(ApiError(500, "the adapter failed to answer this request; its log holds the reason", code="internal"))
