"""Bodies and event streams that ``/openapi.json`` shows."""

from __future__ import annotations

from typing import Any

_MODEL = "InternVideo2_5"
_VIDEO = {"type": "video_url", "video_url": {"url": "https://example.com/clip.mp4", "num_frames": 16}}

VIDEO: dict[str, Any] = {
    "model": _MODEL,
    "messages": [{"role": "user", "content": [_VIDEO, {"type": "text", "text": "What happens?"}]}],
    "max_tokens": 128,
}
CHAT: dict[str, Any] = {"model": _MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
COMPLETION: dict[str, Any] = {"model": _MODEL, "prompt": "The star is", "max_tokens": 16}
RESPONSE: dict[str, Any] = {"model": _MODEL, "input": "What colour is the star?", "max_output_tokens": 16}
FRAMES: dict[str, Any] = _VIDEO
TOKENIZE: dict[str, Any] = {"prompt": "What happens?"}
DETOKENIZE: dict[str, Any] = {"tokens": [1, 300]}

CHAT_STREAM = """\
data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764200000,"model":"InternVideo2_5",\
"system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764200000,"model":"InternVideo2_5",\
"system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"content":"A star"},"finish_reason":null}]}

: ping

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764200000,"model":"InternVideo2_5",\
"system_fingerprint":"fp_1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}

data: [DONE]

"""
COMPLETION_STREAM = """\
data: {"id":"cmpl-1","object":"text_completion","created":1764200000,"model":"InternVideo2_5","system_fingerprint":"fp_1",\
"choices":[{"index":0,"text":" yellow","logprobs":null,"finish_reason":null}]}

data: {"id":"cmpl-1","object":"text_completion","created":1764200000,"model":"InternVideo2_5","system_fingerprint":"fp_1",\
"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}]}

data: [DONE]

"""
RESPONSE_STREAM = """\
event: response.created
data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","status":"in_progress"}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_1","output_index":0,"content_index":0,\
"delta":"Yellow","logprobs":[]}

event: response.completed
data: {"type":"response.completed","sequence_number":8,"response":{"id":"resp_1","object":"response","status":"completed"}}

"""
