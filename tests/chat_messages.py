"""Messages of a chat, their prompt, and their refusal."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.preprocessing.chat import (
    DEFAULT_SYSTEM_TEXT,
    Conversation,
    Prompt,
    build_prompt,
    parse_messages,
)
from tests.tokenizer_files import small_tokenizers

CODED = re.compile(r"\[(?P<code>[A-Z_]+)(?: param=(?P<param>[^\]\s]+))?\] (?P<message>.*)")
VOCAB = 5000  # an engine's vocab_size, on purpose not the tokenizer's
SYSTEM = f"<|im_start|>system\n{DEFAULT_SYSTEM_TEXT}<|im_end|>\n"
CALL = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"city": "北京"}'}}
CONTEXT = "<img>" + "<IMG_CONTEXT>" * 16 + "</img>"


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def video(url: str = "file:///a.mp4", **options: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url, **options}}


def image(url: str = "data:image/png;base64,", **options: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **options}}


def conversation(*messages: Any) -> Conversation:
    return parse_messages(json.dumps(messages))


def prompt(*messages: Any, frames: list[int] | None = None) -> Prompt:
    frames = frames or []
    keys = [bytes([i + 1]) * 32 for i in range(len(frames))]
    return build_prompt(conversation(*messages), frames, small_tokenizers().chat, VOCAB, keys)


def refused(*messages: Any) -> ServingError:
    return refused_json(json.dumps(messages))


def refused_json(raw: str | bytes) -> ServingError:
    with pytest.raises(ServingError) as caught:
        parse_messages(raw)
    error = caught.value
    assert error.code is ErrorCode.INVALID_ARGUMENT
    found = CODED.fullmatch(error.text)
    assert found is not None
    assert found["param"] == error.param
    assert len(error.text) < 400
    return error
