"""``/tokenize`` and ``/detokenize``, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from internvideo_client.adapter._context import context_of
from internvideo_client.errors import bad_request
from internvideo_client.ingest import SamplingDefaults, normal_messages
from internvideo_client.protocol import Fields, TokenId, model_of

from ._work import document_of


class TokenizeRequest(Fields):
    """Body of ``POST /tokenize``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = Field(
        None, min_length=1, description="text only: media are counted where they are read"
    )
    add_special_tokens: bool | None = Field(None, description="of a prompt; true by default: begin with <s>")
    return_token_strs: bool | None = None


class DetokenizeRequest(Fields):
    """Body of ``POST /detokenize``."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


async def tokenize(request: Request) -> Response:
    """Token ids of a text or of a conversation without media."""
    context = context_of(request)
    async with document_of(request) as document:
        body = model_of(TokenizeRequest, document.fields)
        if body.model is not None:
            context.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise bad_request("give either prompt or messages", "prompt")
        if body.messages is not None:
            messages = normal_messages(body.messages, SamplingDefaults(), context.max_frames)
            ids = await context.client.prepare(_without_media(messages))
        else:
            ids = await context.client.prepare({"prompt": body.prompt})
            ids = ids if body.add_special_tokens is not False else ids[1:]
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": context.engine.context_length, "tokens": ids}
    answer["token_strs"] = [context.tokenizer.id_to_token(i) for i in ids] if body.return_token_strs else None
    return JSONResponse(answer)


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    context = context_of(request)
    async with document_of(request) as document:
        body = model_of(DetokenizeRequest, document.fields)
        if body.model is not None:
            context.check_model(body.model)
        if any(i >= context.tokenizer.get_vocab_size() for i in body.tokens):
            raise bad_request("tokens: an id is beyond the vocabulary", "tokens")
        # In a thread, and by the one call that leaves Python to others meanwhile.
        (text,) = await asyncio.to_thread(context.tokenizer.decode_batch, [body.tokens], skip_special_tokens=False)
        return JSONResponse({"prompt": text})


def _without_media(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for i, message in enumerate(messages):
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") in ("video_url", "image_url"):
                raise bad_request(
                    "media are not tokenized here: each frame has 16 visual tokens and about 9 of text",
                    f"messages.{i}.content.{j}",
                )
    return messages
