"""The FastAPI app: routes, errors in OpenAI's form, readiness."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from tokenizers import Tokenizer

from .._errors import ApiError, bad_request
from .._protocol import ChatCompletion, ChatCompletionRequest
from ..triton import Sampling, TritonChatClient
from ._answer import Answer, chunks, events, whole
from ._body_limit import BodyLimit
from ._disconnect import ClientGoneError, EventStream, until_disconnect
from ._metrics import Metrics
from ._settings import AdapterSettings
from ._timings import server_timing

_READINESS_VALID_S = 2.0
_SHOWN = 100  # characters of a client's own value that a message quotes

_HTTP_CODES = {404: "unknown_path", 405: "method_not_allowed", 413: "request_too_large", 400: "invalid_argument"}


@dataclass
class _State:
    settings: AdapterSettings
    tokenizer: Tokenizer
    context_length: int
    client: TritonChatClient
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))
    ready_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ready_until: float = 0.0


def create_app(settings: AdapterSettings) -> FastAPI:
    """The ASGI app of the adapter.

    Args:
        settings: See `AdapterSettings`; the engine's files are read here.

    Raises:
        OSError, ValueError: The engine's files cannot be read.
    """
    tokenizer, context_length = settings.load_tokenizer(), settings.load_context_length()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with TritonChatClient(
            settings.triton,
            request_timeout_s=settings.request_timeout_s,
            first_token_timeout_s=settings.first_token_timeout_s,
            inactivity_timeout_s=settings.inactivity_timeout_s,
        ) as client:
            app.state.adapter = _State(settings, tokenizer, context_length, client, Metrics())
            yield

    app = FastAPI(title="InternVideo2.5 on Triton", lifespan=lifespan)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_api_route("/v1/chat/completions", _chat, methods=["POST"], response_model=ChatCompletion)
    app.add_api_route("/v1/models", _models, methods=["GET"])
    app.add_api_route("/v1/models/{model_id}", _model, methods=["GET"])
    app.add_api_route("/health/live", _live, methods=["GET"])
    app.add_api_route("/health/ready", _ready, methods=["GET"])
    app.add_api_route("/metrics", _metrics, methods=["GET"])
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    return app


async def _chat(body: ChatCompletionRequest, request: Request) -> Response:
    state = _state(request)
    _check_model(state, body.model)
    generation = state.client.generate(body.messages, _sampling(body))
    answer = Answer(state.tokenizer, body, generation, state.context_length)
    pieces = state.metrics.watch(answer)
    try:
        if not body.stream:
            completion = await until_disconnect(request.receive, whole(answer, pieces))
            return JSONResponse(completion.model_dump(), headers=server_timing(answer.timings))
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        stream = events(chunks(answer, pieces, include_usage))
        first = await until_disconnect(request.receive, anext(stream))
    except ClientGoneError:
        return Response(status_code=499)  # for the access log: nobody reads it
    return EventStream(first, stream, server_timing(answer.timings))


def _sampling(body: ChatCompletionRequest) -> Sampling:
    return Sampling(
        max_tokens=body.token_limit,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        # TensorRT-LLM takes 64 unsigned bits; OpenAI's seeds may be negative. Absent: another one each time.
        seed=secrets.randbits(64) if body.seed is None else body.seed % 2**64,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        min_tokens=body.min_tokens,
        log_probs=bool(body.logprobs),
    )


def _check_model(state: _State, model: str) -> None:
    known = state.settings.model_id
    if model != known:
        shown = model if len(model) <= _SHOWN else f"{model[:_SHOWN]}..."
        raise ApiError(404, f"there is no model {shown!r} here, only {known!r}", "model", "model_not_found")


async def _models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_model_card(_state(request))]}


async def _model(model_id: str, request: Request) -> dict[str, Any]:
    state = _state(request)
    _check_model(state, model_id)
    return _model_card(state)


def _model_card(state: _State) -> dict[str, Any]:
    return {"id": state.settings.model_id, "object": "model", "created": state.created, "owned_by": "OpenGVLab"}


async def _live() -> dict[str, str]:
    return {"status": "live"}


async def _ready(request: Request) -> dict[str, str]:
    state = _state(request)
    async with state.ready_lock:  # one probe at a time, however many ask
        if time.monotonic() > state.ready_until:
            await state.client.check_ready()
            state.ready_until = time.monotonic() + _READINESS_VALID_S
    return {"status": "ready"}


async def _metrics(request: Request) -> Response:
    return Response(_state(request).metrics.render(), media_type=Metrics.content_type)


def _state(request: Request) -> _State:
    state: _State = request.app.state.adapter
    return state


def _render(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - Starlette's signature is wider than what it calls this with
    return _render(error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """The first fault that pydantic found; its input is not repeated, it can be a whole video."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]
    place, reason = first["loc"][1:], first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return _render(bad_request(f"the body is not valid JSON: {first['ctx']['error']} at position {place[0]}"))
    if not place:
        return _render(bad_request("the body must be a JSON object, sent with Content-Type: application/json"))
    path = ".".join(map(str, place))
    return _render(bad_request(f"{path}: {reason}", path))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, and bodies that could not be read."""
    assert isinstance(error, HTTPException)  # noqa: S101
    response = _render(ApiError(error.status_code, error.detail, code=_HTTP_CODES.get(error.status_code)))
    response.headers.update(error.headers or {})
    return response


async def _on_bug(request: Request, error: Exception) -> Response:
    return _render(ApiError(500, "the adapter failed to answer this request; its log holds the reason", code="internal"))
