"""What the routes answer, as JSON schemas for ``/openapi.json``; tests/clients holds every answer against them."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TIME: Schema = {"type": "integer", "description": "seconds since 1970"}


def _object(properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    """All properties are there but the optional ones; more may come with a later version."""
    return {"type": "object", "required": [name for name in properties if name not in optional], "properties": properties}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _word(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def _page_of(schema: Schema) -> Schema:
    ends = {"first_id": _or_null(TEXT), "last_id": _or_null(TEXT), "has_more": {"type": "boolean"}}
    return _object({"object": _word("list"), "data": _list_of(schema), **ends})


ERROR = _object(
    {"error": _object({"message": TEXT, "type": TEXT, "param": _or_null(TEXT), "code": _or_null(TEXT)})},
)
_MEDIUM = _object(
    {
        "frames": COUNT,
        "cached_frames": COUNT,
        "frame_numbers": _list_of(COUNT),
        "frame_seconds": _list_of({"type": "number"}),
        "damaged_frames": COUNT,
        "fps": {"type": "number", "description": "where it was lowered to fit"},
    },
    optional=("frame_numbers", "frame_seconds", "damaged_frames", "fps"),
)
_TIMES = ("queue_ms", "fetch_ms", "decode_ms", "vision_queue_ms", "vision_ms", "first_token_ms")
_COUNTS = ("frames", "cached_frames", "damaged_frames")
_INTERNVIDEO = _object(
    {**{name: {"type": "number"} for name in _TIMES}, **dict.fromkeys(_COUNTS, COUNT), "media": _list_of(_MEDIUM)},
    optional=(*_TIMES, *_COUNTS, "media"),
)
_DETAILS = _object({"cached_tokens": COUNT, "video_tokens": COUNT})
USAGE = _object(
    {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": _DETAILS,
        "internvideo": _INTERNVIDEO,
    },
    optional=("prompt_tokens_details", "internvideo"),
)
_OF_A_TOKEN = {"token": TEXT, "logprob": {"type": "number"}, "bytes": _list_of(COUNT)}
_TOKEN = _object(_OF_A_TOKEN)
_LOG_PROBS = _object({"content": _list_of(_object({**_OF_A_TOKEN, "top_logprobs": _list_of(_TOKEN)}))})
_CALL = _object({"id": TEXT, "type": _word("function"), "function": _object({"name": TEXT, "arguments": TEXT})})
_STOP_REASON: Schema = {"type": ["string", "integer"], "description": "vLLM's: the stop string or the id of the stop token"}
_FINISH = _word("stop", "length", "tool_calls")
_MESSAGE = _object(
    {"role": _word("assistant"), "content": _or_null(TEXT), "tool_calls": _list_of(_CALL)}, optional=("tool_calls",)
)
_HEAD = {"id": TEXT, "created": TIME, "model": TEXT, "system_fingerprint": TEXT}
_CHOICE = {"index": COUNT, "finish_reason": _FINISH, "stop_reason": _STOP_REASON}

CHAT = _object(
    {
        **_HEAD,
        "object": _word("chat.completion"),
        "choices": _list_of(
            _object({**_CHOICE, "message": _MESSAGE, "logprobs": _or_null(_LOG_PROBS)}, optional=("stop_reason",))
        ),
        "usage": USAGE,
    }
)
_OLD_LOG_PROBS = _object(
    {
        "tokens": _list_of(TEXT),
        "token_logprobs": _list_of({"type": "number"}),
        "top_logprobs": _list_of({"type": "object", "additionalProperties": {"type": "number"}}),
        "text_offset": _list_of(COUNT),
    }
)
COMPLETION = _object(
    {
        **_HEAD,
        "object": _word("text_completion"),
        "choices": _list_of(_object({**_CHOICE, "text": TEXT, "logprobs": _or_null(_OLD_LOG_PROBS)}, optional=("stop_reason",))),
        "usage": USAGE,
    }
)
_OUTPUT_TEXT = _object(
    {"type": _word("output_text"), "text": TEXT, "annotations": {"type": "array"}, "logprobs": {"type": "array"}}
)
_STATUS = _word("in_progress", "completed", "incomplete", "failed")
_OUTPUT = {
    "anyOf": [
        _object(
            {
                "type": _word("message"),
                "id": TEXT,
                "role": _word("assistant"),
                "status": _STATUS,
                "content": _list_of(_OUTPUT_TEXT),
            }
        ),
        _object(
            {
                "type": _word("function_call"),
                "id": TEXT,
                "call_id": TEXT,
                "name": TEXT,
                "arguments": TEXT,
                "status": _STATUS,
            }
        ),
    ]
}
RESPONSE = _object(
    {
        "id": TEXT,
        "object": _word("response"),
        "created_at": TIME,
        "status": _STATUS,
        "model": TEXT,
        "output": _list_of(_OUTPUT),
        "error": _or_null(_object({"code": TEXT, "message": TEXT})),
        "incomplete_details": _or_null(_object({"reason": TEXT})),
        "previous_response_id": _or_null(TEXT),
        "instructions": _or_null(TEXT),
        "max_output_tokens": _or_null(COUNT),
        "store": {"type": "boolean"},
        "tools": {"type": "array"},
        "metadata": {"type": "object"},
        "usage": _or_null(
            _object(
                {
                    "input_tokens": COUNT,
                    "input_tokens_details": _object({"cached_tokens": COUNT, "video_tokens": COUNT}, optional=("video_tokens",)),
                    "output_tokens": COUNT,
                    "output_tokens_details": _object({"reasoning_tokens": COUNT}),
                    "total_tokens": COUNT,
                    "internvideo": _INTERNVIDEO,
                }
            )
        ),
    }
)
ITEMS = _page_of(_object({"id": TEXT}))
DELETED = _object({"id": TEXT, "object": TEXT, "deleted": {"type": "boolean"}})
FILE = _object(
    {
        "id": TEXT,
        "object": _word("file"),
        "bytes": COUNT,
        "created_at": TIME,
        "expires_at": TIME,
        "filename": TEXT,
        "purpose": TEXT,
        "status": _word("processed"),
    }
)
FILES = _page_of(FILE)
FRAMES = _object(
    {
        "object": _word("list"),
        "frames": _list_of(
            _object(
                {
                    "time": {"type": "number", "description": "seconds of the video"},
                    "index": {"type": "integer", "minimum": 0, "description": "of the frame in the video"},
                    "image": {"type": "string", "description": "data:image/jpeg;base64,..."},
                }
            )
        ),
    }
)
MODEL = _object(
    {
        "id": TEXT,
        "object": _word("model"),
        "created": TIME,
        "owned_by": TEXT,
        "root": TEXT,
        "max_model_len": COUNT,
        "max_frames": COUNT,
    },
)
MODELS = _object({"object": _word("list"), "data": _list_of(MODEL)})
TOKENS = _object(
    {"count": COUNT, "max_model_len": COUNT, "tokens": _list_of(COUNT), "token_strs": _or_null(_list_of(TEXT))},
)
PROMPT = _object({"prompt": TEXT})
VERSION = _object({"version": TEXT, "engine": TEXT})
HEALTH = _object({"status": _word("live", "ready")})
