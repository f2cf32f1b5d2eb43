"""``/v1/responses``: create, whole or as events; read, go on from and delete what is kept."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from internvideo_client.adapter._context import context_of, owner_of
from internvideo_client.adapter.http import EventStream, until_disconnect
from internvideo_client.errors import ApiError, bad_request, renamed
from internvideo_client.ingest import JsonDocument
from internvideo_client.protocol import ResponsesRequest, model_of
from internvideo_client.state import StoredResponse
from internvideo_server.routing import response_id

from ._chat import begin_chat
from ._response_input import chat_request, input_items_of, output_messages, own_name, shown_item
from ._response_json import ResponseJson
from ._work import document_of, watched


async def create_response(request: Request) -> Response:
    """Answer an input, whole or as events."""
    context = context_of(request)
    async with document_of(request) as document:
        body = model_of(ResponsesRequest, document.fields)
        context.check_model(body.model)
        earlier = await _earlier(request, body)
        items = input_items_of(body)
        try:
            return await _answered(request, body, document, earlier, items)
        except ApiError as error:
            before = sum(not message.get("instructions") for message in earlier) + bool(body.instructions)
            raise renamed(error, own_name(error.param, items, before)) if error.param else error from None


async def _answered(
    request: Request, body: ResponsesRequest, document: JsonDocument, earlier: list[dict[str, Any]], items: list[dict[str, Any]]
) -> Response:
    context = context_of(request)
    asked = chat_request(body, earlier, items)
    kept = body.store is not False and await _keep_media(request, asked.messages, document)
    history = [dict(message) for message in asked.messages]
    answer = await begin_chat(request, asked, document)
    new_id = response_id(context.settings.replica_name, answer.generation.request_id)
    writer = ResponseJson(answer, body, asked, new_id, kept)

    async def store() -> None:
        if kept:
            messages = [*history, *output_messages(writer.document)]
            await context.state.responses.put(owner_of(request), StoredResponse(writer.document, messages, items))

    pieces = watched(context, answer, bool(body.stream))
    if body.stream:
        stream = writer.events(pieces, store)
        return EventStream(await until_disconnect(request.receive, anext(stream)), stream, {})
    await until_disconnect(request.receive, writer.whole(pieces))
    await store()
    return JSONResponse(writer.document)


async def get_response(request: Request) -> Response:
    """A response that was kept; it has ended, so there are no events to come."""
    if request.query_params.get("stream", "false").lower() not in ("false", "0"):
        raise bad_request("stream: a kept response is read whole", "stream", "unsupported_parameter")
    return JSONResponse((await _stored(request, request.path_params["response_id"])).document)


async def input_items(request: Request) -> Response:
    """What a kept response was asked with."""
    items = (await _stored(request, request.path_params["response_id"])).input
    data = [shown_item(item, number) for number, item in enumerate(items)]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": data, **ends, "has_more": False})


async def delete_response(request: Request) -> Response:
    """Forget a response."""
    given = request.path_params["response_id"]
    if not await context_of(request).state.responses.delete(given, owner_of(request)):
        raise _missing(given)
    return JSONResponse({"id": given, "object": "response", "deleted": True})


async def _earlier(request: Request, body: ResponsesRequest) -> list[dict[str, Any]]:
    """The conversation that this one goes on from."""
    if body.previous_response_id is None:
        return []
    stored = await context_of(request).state.responses.get(body.previous_response_id, owner_of(request))
    if stored is None:
        message = f"there is no response {body.previous_response_id[:64]!r} of yours here, or it is too old"
        raise bad_request(message, "previous_response_id", "previous_response_not_found")
    return stored.messages


async def _stored(request: Request, response_id: str) -> StoredResponse:
    stored = await context_of(request).state.responses.get(response_id, owner_of(request))
    if stored is None:
        raise _missing(response_id)
    return stored


def _missing(given: str) -> ApiError:
    return ApiError(404, f"there is no response {given[:64]!r} of yours here", "response_id", "response_not_found")


async def _keep_media(request: Request, messages: list[dict[str, Any]], document: JsonDocument) -> bool:
    """Put media that came within the request into files, so that the next turn has them; False where none are kept."""
    if not document.media:
        return True
    files = context_of(request).state.files
    if not files.enabled:
        return False
    owner = owner_of(request)
    saved = {f"attachment:{i}": f"file-id:{(await files.save(owner, each)).id}" for i, each in enumerate(document.media)}
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            for kind in ("video_url", "image_url"):
                medium = part.get(kind) if isinstance(part, dict) else None
                url = medium.get("url") if isinstance(medium, dict) else medium
                if isinstance(url, str) and url in saved:
                    part[kind] = {**(medium if isinstance(medium, dict) else {}), "url": saved[url]}
    document.media = []
    return True
