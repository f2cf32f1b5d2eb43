"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from internvideo_client.adapter._context import Context, context_of, owner_of
from internvideo_client.adapter.generation import Answer, with_tool_prompt
from internvideo_client.adapter.http import until_disconnect
from internvideo_client.ingest import JsonDocument, SamplingDefaults, normal_messages
from internvideo_client.protocol import ChatCompletionRequest, check_sequences, model_of
from internvideo_client.timings import server_timing

from ._chat_json import AnswerNames, ChatJson
from ._work import begin, document_of, stream_response, watched


async def chat_completions(request: Request) -> Response:
    """Answer a conversation about videos, images or nothing but text."""
    context = context_of(request)
    async with document_of(request) as document:
        body = model_of(ChatCompletionRequest, document.fields)
        context.check_model(body.model)
        check_sequences(body.n, body.best_of, body.stream)
        answer = await begin_chat(request, body, document)
        names = AnswerNames(f"chatcmpl-{answer.generation.request_id}", body.model, context.fingerprint)
        writer = ChatJson(answer, body, names)
        pieces = watched(context, answer, bool(body.stream))
        if body.stream:
            return await stream_response(request, writer.chunks(pieces))
        completion = await until_disconnect(request.receive, writer.whole(pieces))
    return JSONResponse(completion, headers=server_timing(answer.timings))


async def begin_chat(request: Request, body: ChatCompletionRequest, document: JsonDocument) -> Answer:
    """The answer to come, with the messages in the form of the model `preprocessing`.

    Raises:
        ApiError: A field that cannot be meant, a file that is not there.
    """
    context = context_of(request)
    messages = await chat_messages(context, owner_of(request), body)
    return await begin(
        request,
        body,
        messages,
        media=document.media,
        token_limit=body.token_limit,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        cache_salt=body.cache_salt,
    )


async def chat_messages(context: Context, owner: str, body: ChatCompletionRequest) -> list[dict[str, Any]]:
    """The messages as `preprocessing` knows them: one shape for media, files by their path, functions described."""
    defaults = SamplingDefaults.of(body.media_io_kwargs, body.mm_processor_kwargs)
    max_frames = context.max_frames
    messages = normal_messages(body.messages, defaults, max_frames)
    messages = await context.state.files.resolve(messages, owner)
    return with_tool_prompt(body, messages)
