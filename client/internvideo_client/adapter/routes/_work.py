"""Begin a request's work: check, sample, ask; common to chat, completions and responses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from internvideo_client.adapter._context import Context, context_of, owner_of
from internvideo_client.adapter.generation import Answer, Pieces
from internvideo_client.adapter.http import HEARTBEAT_S, EventStream, Quota, events, until_disconnect
from internvideo_client.errors import QUEUE_FULL, ApiError
from internvideo_client.ingest import JsonDocument, read_json
from internvideo_client.protocol import GenerationFields

from ._sampling import sampling_of


@asynccontextmanager
async def document_of(request: Request) -> AsyncIterator[JsonDocument]:
    """The request's body, counted as in flight until its media have left for Triton.

    Raises:
        ApiError: See :func:`read_json`; 503 where too much is in flight.
    """
    budget, held = context_of(request).in_flight, 0
    quota: Quota | None = request.scope.get("internvideo.quota")

    def take(size: int) -> None:
        nonlocal held
        budget.take(size)
        held += size
        if quota is not None:
            quota.take_bytes(size)

    try:
        yield await read_json(request, context_of(request).limits, take)
    finally:
        budget.give(held)
        if quota is not None:
            quota.give_bytes(held)


async def begin(
    request: Request,
    body: GenerationFields,
    messages: Any,
    *,
    media: list[list[bytes]],
    token_limit: int | None,
    top_logprobs: int | None,
    cache_salt: str | None = None,
) -> Answer:
    """The answer to come; nothing has been asked yet.

    Raises:
        ApiError: 400: what the engine cannot do.
    """
    context = context_of(request)
    sampling = sampling_of(context, body, token_limit, top_logprobs)
    salt = context.cache_salt(owner_of(request), cache_salt)
    await context.capabilities.check(sampling, *["cache_salt"] * bool(salt))
    generation = context.client.generate(messages, sampling, context.triton_id(request), media=media, cache_salt=salt)
    return Answer(
        context.vocabulary,
        body,
        generation,
        context.engine.context_length,
        token_limit,
        want_entries=top_logprobs is not None,
        guide_field=None if sampling.guide is None else sampling.guide.field,
    )


def watched(context: Context, answer: Answer, stream: bool) -> AsyncGenerator[Pieces]:
    """The answer's pieces, counted; in a stream with a heartbeat."""
    return context.metrics.watch(answer, HEARTBEAT_S if stream else None)


async def stream_response(request: Request, chunks: AsyncGenerator[list[str]]) -> Response:
    """The chunks as an event stream; an error before the first one keeps its status.

    Raises:
        ApiError: Before the first chunk.
        ClientGoneError: The client left before it.
    """
    stream = events(chunks)
    return EventStream(await until_disconnect(request.receive, anext(stream)), stream, {})


def with_pace(context: Context, error: ApiError) -> ApiError:
    """A 429 with one text and the seconds after which a place should be free."""
    if error.code == "resource_exhausted":
        error.message = QUEUE_FULL
    if error.status == 429:
        error.retry_after_s = context.metrics.pace.retry_after_s()
    return error
