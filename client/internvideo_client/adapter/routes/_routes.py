"""All routes, with what they may answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from internvideo_client.adapter.openapi import ANY, KEYED, examples, form_body, json_body, parameters, responses, schemas
from internvideo_client.protocol import ChatCompletionRequest, CompletionRequest, ResponsesRequest

from ._chat import chat_completions
from ._completions import completions
from ._files import MOST_LISTED, delete_file, file_content, get_file, list_files, upload_file
from ._frames import FramesRequest, video_frames
from ._models import get_model, list_models, live, metrics, ready, version
from ._responses import create_response, delete_response, get_response, input_items
from ._tokenize import DetokenizeRequest, TokenizeRequest, detokenize, tokenize

_BODY = (*KEYED, 400, 413, 415)
_WORK = (*_BODY, 404, 422, 504)
_FILE = (*KEYED, 404, 501)


def add_routes(app: FastAPI) -> None:
    """Add them to the app."""

    def route(
        method: str, path: str, handler: Callable[..., Any], answers: dict[int | str, Any], extra: dict[str, Any] | None = None
    ) -> None:
        # With JSONResponse FastAPI would add an answer of JSON to the others.
        kind = JSONResponse if "application/json" in answers[200]["content"] else Response
        app.add_api_route(
            path,
            handler,
            methods=[method],
            responses=answers,
            response_class=kind,
            response_model=None,
            openapi_extra=extra,
        )

    def work(answer: schemas.Schema, stream: str | None = None) -> dict[int | str, Any]:
        return responses(answer, *_WORK, stream=stream)

    body = json_body(ChatCompletionRequest, video=examples.VIDEO, text=examples.CHAT)
    route("POST", "/v1/chat/completions", chat_completions, work(schemas.CHAT, examples.CHAT_STREAM), body)
    body = json_body(CompletionRequest, text=examples.COMPLETION)
    route("POST", "/v1/completions", completions, work(schemas.COMPLETION, examples.COMPLETION_STREAM), body)
    body = json_body(ResponsesRequest, text=examples.RESPONSE)
    route("POST", "/v1/responses", create_response, work(schemas.RESPONSE, examples.RESPONSE_STREAM), body)

    path, of_response = "/v1/responses/{response_id}", parameters("path", response_id=schemas.TEXT)
    route("GET", path, get_response, responses(schemas.RESPONSE, *KEYED, 400, 404), of_response)
    route("DELETE", path, delete_response, responses(schemas.DELETED, *KEYED, 404), of_response)
    route("GET", f"{path}/input_items", input_items, responses(schemas.ITEMS, *KEYED, 404), of_response)

    route("POST", "/v1/video/frames", video_frames, work(schemas.FRAMES), json_body(FramesRequest, video=examples.FRAMES))

    route("POST", "/v1/files", upload_file, responses(schemas.FILE, *_BODY, 501), form_body())
    query = parameters(
        "query",
        limit={"type": "integer", "minimum": 1, "maximum": MOST_LISTED},
        order={"type": "string", "enum": ["asc", "desc"]},
        after=schemas.TEXT,
        purpose=schemas.TEXT,
    )
    route("GET", "/v1/files", list_files, responses(schemas.FILES, *KEYED, 400), query)
    path, of_file = "/v1/files/{file_id}", parameters("path", file_id=schemas.TEXT)
    content = responses({"type": "string", "format": "binary"}, *_FILE, kind="application/octet-stream")
    route("GET", path, get_file, responses(schemas.FILE, *_FILE), of_file)
    route("GET", f"{path}/content", file_content, content, of_file)
    route("DELETE", path, delete_file, responses(schemas.DELETED, *_FILE), of_file)

    route("GET", "/v1/models", list_models, responses(schemas.MODELS, *KEYED))
    # Names have slashes: OpenGVLab/InternVideo2_5_Chat_8B.
    of_model = parameters("path", model_id=schemas.TEXT)
    route("GET", "/v1/models/{model_id:path}", get_model, responses(schemas.MODEL, *KEYED, 404), of_model)

    route("POST", "/tokenize", tokenize, work(schemas.TOKENS), json_body(TokenizeRequest, text=examples.TOKENIZE))
    answers = responses(schemas.PROMPT, *_BODY, 404)
    route("POST", "/detokenize", detokenize, answers, json_body(DetokenizeRequest, ids=examples.DETOKENIZE))
    route("GET", "/version", version, responses(schemas.VERSION, *KEYED))
    for path, handler in (("/health", ready), ("/health/ready", ready), ("/ping", live), ("/health/live", live)):
        route("GET", path, handler, responses(schemas.HEALTH, *ANY))
    route("GET", "/metrics", metrics, responses(schemas.TEXT, *KEYED, kind="text/plain"))
