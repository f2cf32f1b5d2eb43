"""``POST /v1/video/frames``: the frames that a question about a video would see, without the model."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from internvideo_client.adapter._context import context_of, owner_of
from internvideo_client.adapter.http import until_disconnect
from internvideo_client.ingest import SamplingDefaults, normal_messages
from internvideo_client.protocol import Fields, model_of

from ._work import document_of


class FramesRequest(Fields):
    """Body of ``POST /v1/video/frames``: a part of a chat: ``{"type": "video_url", "video_url": {...}}``."""

    type: str | None = None
    video_url: dict[str, Any] | str | None = None
    image_url: dict[str, Any] | str | None = None
    cache_salt: str | None = None


async def video_frames(request: Request) -> Response:
    """The sampled frames of a medium as small JPEG images, with their times."""
    context = context_of(request)
    async with document_of(request) as document:
        fields = document.fields  # a part of a chat: its options stand where a chat has none
        body = model_of(FramesRequest, {name: fields[name] for name in FramesRequest.model_fields if name in fields})
        part = {key: value for key, value in fields.items() if key not in ("model", "cache_salt")}
        max_frames = context.max_frames
        messages = normal_messages([{"role": "user", "content": [part]}], SamplingDefaults(), max_frames)
        messages = await context.state.files.resolve(messages, owner_of(request))
        salt = context.cache_salt(owner_of(request), body.cache_salt)
        found = await until_disconnect(request.receive, context.client.frames(messages, document.media, salt))
    return JSONResponse({"object": "list", "frames": found})
