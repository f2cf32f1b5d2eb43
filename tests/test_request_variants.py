"""Bodies of the shapes that clients of OpenAI, vLLM, Qwen, LiteLLM, ... send: what asks for nothing passes, nothing is lost.

Each goes over HTTP through the adapter; what it hands to the chain is then read by the chain's own parser.
"""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from internvideo_server.preprocessing.chat import parse_messages
from tests.fake_triton import FakeTriton, Step, piece

MODEL = "InternVideo2_5"
HI: Any = [{"role": "user", "content": "Hi"}]
URL = "https://example.com/a.mp4"
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
VLLM_DUMP = {
    "json": SCHEMA,
    "regex": None,
    "choice": None,
    "grammar": None,
    "json_object": None,
    "disable_fallback": False,
    "disable_any_whitespace": False,
    "disable_additional_properties": False,
    "whitespace_pattern": None,
    "structural_tag": None,
}


def _video(**options: float) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": URL, **options}}


def post(url: str, path: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/{path}", json=body, timeout=30)


@pytest.fixture
def answering(fake: FakeTriton, url: str) -> str:
    fake.script = [Step([piece("Hello")], log_probs=[-0.5])]
    return url


@pytest.mark.parametrize(
    "fields",
    [
        # null, false, empty and default values
        {"temperature": None, "max_tokens": None, "n": None, "seed": None, "stop": None, "tools": None, "logit_bias": None},
        {"stop": "", "user": "", "cache_salt": "", "response_format": {}, "tools": [], "logit_bias": {}, "functions": []},
        {"stop": [], "stop_token_ids": [], "bad_words": [], "stream_options": {}, "mm_processor_kwargs": {}},
        {"prompt_logprobs": None, "top_logprobs": 0, "logprobs": False, "echo": False, "use_beam_search": False},
        {"length_penalty": 1.0, "best_of": 1, "priority": 0, "add_generation_prompt": True, "truncate_prompt_tokens": None},
        {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "min_p": 0, "top_k": -1, "top_p": 1},
        {"chat_template_kwargs": {"enable_thinking": False}, "thinking": {"type": "disabled"}, "reasoning": {"effort": None}},
        {"guided_decoding_backend": "auto", "structured_outputs": None, "guided_json": None, "documents": [], "extra_body": {}},
        {"function_call": "none", "tool_choice": "none"},
        {"tool_choice": "auto"},
        {"spaces_between_special_tokens": True, "skip_special_tokens": True, "detokenize": True, "add_special_tokens": False},
        {"stream_options": {"include_usage": False}},
        {"stream_options": {"include_usage": True}},
        {"media_io_kwargs": {"audio": {}, "image": {"image_mode": "RGB"}, "video": None}},
        {"mm_processor_kwargs": {"do_sample_frames": True, "min_pixels": 3136, "max_pixels": 602112}},
        # what changes no answer
        {"metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": True, "safety_identifier": "a"},
        {"prediction": {"type": "content", "content": "x"}, "prompt_cache_key": "a", "prompt_cache_retention": "24h"},
        {"nobody_knows_this": 1},
        # numbers as floats and as texts
        {"max_tokens": 8.0, "n": 1.0, "seed": 5.0, "top_k": 4.0, "min_tokens": 0.0},
        {"max_tokens": "8", "temperature": "0.5"},
        {"max_tokens": 2**63, "max_completion_tokens": 10**30},
        {"max_completion_tokens": 8},
        {"seed": -1},
        {"media_io_kwargs": {"video": {"num_frames": 8, "fps": -1}}},
        {"media_io_kwargs": {"video": {"num_frames": -1, "fps": 2}}},
        # one way among several to say the same
        {"structured_outputs": VLLM_DUMP},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [{"function": {"name": "f"}}], "tool_choice": {"function": {"name": "f"}}},
        {"modalities": ["text"]},
        {"logprobs": True, "top_logprobs": None, "return_tokens_as_token_ids": True},
        {"request_id": "mine-1"},
    ],
    ids=lambda fields: ",".join(fields)[:60],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_body_that_is_answered(answering: str, fields: dict[str, Any], stream: bool) -> None:
    response = post(answering, "chat/completions", {"model": MODEL, "messages": HI, "stream": stream, **fields})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"length_penalty": 2}, "length_penalty"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"stop_regex": "a+"}, "stop_regex"),
        ({"structural_tag": {"type": "structural_tag"}}, "structural_tag"),
        ({"truncate_prompt_tokens": 10}, "truncate_prompt_tokens"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_special_tokens": True}, "add_special_tokens"),
        ({"detokenize": False}, "detokenize"),
        ({"echo": True}, "echo"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"documents": [{"text": "a"}]}, "documents"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"verbosity": "low"}, "verbosity"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"extra_body": {"top_k": 1}}, "extra_body"),
        ({"options": {"num_predict": 3}}, "options"),
        ({"max_new_tokens": 4}, "max_new_tokens"),
        ({"repeat_penalty": 1.1}, "repeat_penalty"),
        ({"num_beams": 4}, "num_beams"),
        ({"stop_sequences": ["a"]}, "stop_sequences"),
        ({"system": "Be brief"}, "system"),
        ({"json_schema": SCHEMA}, "json_schema"),
        ({"num_frames": 8}, "num_frames"),
        ({"fps": 2}, "fps"),
        ({"prompt": "Hello"}, "prompt"),
        ({"input": "Hello"}, "input"),
        ({"instructions": "Be brief"}, "instructions"),
        ({"max_output_tokens": 4}, "max_output_tokens"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs.regex"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object", "json_schema": {"schema": SCHEMA}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        (
            {"messages": [{"role": "user", "content": [_video(num_frames=8, nframes=4)]}]},
            "messages.0.content.0.video_url.num_frames",
        ),
        ({"messages": [{"role": "user", "content": [_video(fps=1) | {"fps": 2}]}]}, "messages.0.content.0.video_url.fps"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": [[5, 1]]}, "logit_bias"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [5]}, "stop.0"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"stream_options": 3}, "stream_options"),
        ({"media_io_kwargs": {"video": {"num_frames": 8, "fps": 2}}}, "media_io_kwargs.video.fps"),
        ({"media_io_kwargs": {"image": {"rgba_background_color": [0, 0, 0]}}}, "media_io_kwargs.image.rgba_background_color"),
        ({"mm_processor_kwargs": {"num_crops": 4}}, "mm_processor_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"model": 5}, "model"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_a_body_that_would_be_answered_as_something_else(
    answering: str, fake: FakeTriton, fields: dict[str, Any], param: str
) -> None:
    response = post(answering, "chat/completions", {"model": MODEL, "messages": HI, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert fake.requests == []


@pytest.mark.parametrize(
    ("content", "frames", "fps"),
    [
        ([{"type": "video_url", "video_url": {"url": URL, "num_frames": 8.0}}], 8, None),
        ([{"type": "video_url", "video_url": {"url": URL, "num_frames": "8", "start": "1.5", "end": "2"}}], 8, None),
        ([{"type": "video_url", "video_url": {"url": URL, "fps": "2.0"}, "max_frames": 16.0}], None, 2),
        ([{"type": "video_url", "video_url": {"url": URL, "num_frames": 8}, "nframes": 8}], 8, None),
        ([{"type": "video_url", "video_url": {"url": URL, "num_frames": 5}}], 8, None),
        ([{"type": "video_url", "video_url": {"url": URL, "fps": 2}}], None, 2),
        ([{"type": "video_url", "video_url": {"url": URL, "num_frames": -1, "fps": 2}}], None, 2),
        ([{"type": "video_url", "video_url": {"url": URL, "num_frames": 8, "fps": -1}}], 8, None),
        ([{"type": "video_url", "video_url": {"url": URL, "num_frames": None, "fps": None}}], None, None),
        ([{"type": "video_url", "video_url": URL, "nframes": 8, "max_pixels": 360 * 420}], 8, None),
        ([{"type": "video", "video": URL, "fps": 1.0, "min_pixels": 16 * 28 * 28, "total_pixels": 20480}], None, 1),
        ([{"type": "video", "video": URL, "max_frames": 16}], 16, None),
        ([{"type": "video", "video": {"url": URL}, "video_start": 1, "video_end": 2}], None, None),
        ([{"video_url": {"url": URL}}, {"text": "What?"}], None, None),
        ([{"type": "input_video", "video_url": URL}, {"type": "input_text", "text": "What?"}], None, None),
        ([{"type": "video_url", "video_url": {"url": URL, "detail": "low"}, "uuid": "a", "cache_control": None}], None, None),
        ([{"type": "file", "file": {"file_data": URL, "filename": "a.mp4"}}], None, None),
        ([{"type": "video", "video": ["https://a/1.png", "https://a/2.png"], "sample_fps": 2}, "What?"], None, None),
    ],
)
def test_a_video_in_the_shapes_of_vllm_qwen_and_openai(
    answering: str, fake: FakeTriton, content: Any, frames: int | None, fps: float | None
) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    response = post(answering, "chat/completions", body)
    assert response.status_code == 200, response.text
    (medium,) = parse_messages(json.dumps(fake.requests[0]["messages"])).media
    assert medium.kind == "video" and (medium.num_frames, medium.fps) == (frames, fps)


@pytest.mark.parametrize(
    "message",
    [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "assistant", "content": [], "refusal": None, "audio": None, "annotations": [], "reasoning_content": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Yes.", "annotations": []}]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "1"}]},
        {"role": "function", "name": "f", "content": "1"},
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "user", "content": []},
    ],
    ids=lambda message: f"{message['role']}-{type(message['content']).__name__}",
)
def test_a_history_as_sdks_send_it_back(answering: str, fake: FakeTriton, message: Any) -> None:
    response = post(answering, "chat/completions", {"model": MODEL, "messages": [*HI, message, *HI]})
    assert response.status_code == 200, response.text
    assert len(parse_messages(json.dumps(fake.requests[0]["messages"])).messages) == 3


def test_a_response_takes_the_sampling_fields_of_vllm(answering: str, fake: FakeTriton) -> None:
    body = {"model": MODEL, "input": "Hi", "top_k": 5, "min_p": 0.1, "stop": ["x"], "logit_bias": {"5": 1}, "temperature": 1}
    assert post(answering, "responses", body).status_code == 200
    asked = fake.requests[0]
    assert asked["runtime_top_k"] == 5 and asked["min_p"] == pytest.approx(0.1) and asked["embedding_bias"][5] == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning": {"effort": None, "summary": None}, "include": [], "tools": [], "background": False, "conversation": None},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "truncation": "disabled", "store": False},
        {"tool_choice": "auto", "max_tool_calls": 3, "service_tier": "auto", "stream_options": {"include_obfuscation": False}},
        {"instructions": "", "previous_response_id": "", "user": "", "metadata": {}},
    ],
)
def test_a_response_that_asks_for_nothing_more(answering: str, fields: dict[str, Any]) -> None:
    response = post(answering, "responses", {"model": MODEL, "input": "Hi", **fields})
    assert response.status_code == 200, response.text


def test_a_response_tells_log_probabilities_where_they_are_included(answering: str) -> None:
    body = {"model": MODEL, "input": "Hi", "include": ["message.output_text.logprobs"]}
    (item,) = post(answering, "responses", body).json()["output"]
    assert [token["token"] for token in item["content"][0]["logprobs"]] == ["Hello"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("responses", {"input": "Hi", "max_tokens": 3}, "max_tokens"),
        ("responses", {"input": "Hi", "n": 2}, "n"),
        ("responses", {"input": "Hi", "response_format": {"type": "json_object"}}, "response_format"),
        ("responses", {"input": "Hi", "messages": HI}, "messages"),
        ("responses", {"input": "Hi", "text": {"verbosity": "low"}}, "text.verbosity"),
        ("responses", {"input": "Hi", "tools": [{"type": "web_search"}]}, "tools.0.type"),
        ("responses", {"input": "Hi", "truncation": "auto"}, "truncation"),
        ("responses", {"input": "Hi", "background": True}, "background"),
        ("responses", {"input": "Hi", "prompt": {"id": "p"}}, "prompt"),
        ("responses", {"input": "Hi", "reasoning": {"effort": "low"}}, "reasoning"),
        ("responses", {"input": [{"type": "computer_call"}]}, "input.0.type"),
        ("responses", {"input": "Hi", "stop": [5]}, "stop.0"),
        ("responses", {"input": []}, "input"),
        ("responses", {"input": "Hi", "text": {"format": {"type": "json_schema"}}}, "text.format"),
        (
            "responses",
            {"input": "Hi", "text": {"format": {"type": "json_schema", "schema": {"enum": [5] * 1001}}}},
            "text.format.schema",
        ),
        ("responses", {"input": [*HI, {"type": "function_call_output", "call_id": "c", "output": {"a": 5}}]}, "input.1.output"),
        (
            "responses",
            {
                "instructions": "Hi",
                "input": [{"type": "reasoning", "summary": []}, {"role": "user", "content": [_video(fps=1) | {"fps": 2}]}],
            },
            "input.1.content.0.video_url.fps",
        ),
        ("completions", {"prompt": "Hi", "echo": True, "logprobs": 1}, "echo"),
        ("completions", {"prompt": ["Hi"] * 17}, "prompt"),
        ("completions", {"prompt": "Hi", "messages": HI}, "messages"),
        ("completions", {"prompt": "Hi", "tools": [TOOL]}, "tools"),
        ("completions", {"prompt": "Hi", "top_logprobs": 3}, "top_logprobs"),
        ("completions", {"prompt": "Hi", "suffix": "x"}, "suffix"),
        ("completions", {"prompt": "Hi", "max_completion_tokens": 3}, "max_completion_tokens"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": "Hi", "logprobs": 21}, "logprobs"),
    ],
)
def test_a_field_of_another_route_is_not_lost(answering: str, path: str, body: dict[str, Any], param: str) -> None:
    response = post(answering, path, {"model": MODEL, **body})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_a_body_may_begin_with_the_mark_of_utf_8(answering: str) -> None:
    body = json.dumps({"model": MODEL, "messages": HI}).encode("utf-8-sig")
    headers = {"Content-Type": "application/json"}
    assert httpx2.post(f"{answering}/v1/chat/completions", content=body, headers=headers).status_code == 200


def test_a_thought_of_the_history_adds_nothing_to_the_prompt(answering: str, fake: FakeTriton) -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    assert post(answering, "responses", {"model": MODEL, "input": [thought, *HI]}).status_code == 200
    assert fake.requests[0]["messages"] == HI


@pytest.mark.parametrize(
    ("path", "body", "param"), [("completions", {"prompt": "Hi"}, "prompt"), ("responses", {"input": "Hi"}, "input")]
)
def test_a_fault_of_the_chain_names_the_routes_own_field(
    fake: FakeTriton, url: str, path: str, body: dict[str, Any], param: str
) -> None:
    fake.script = [Step(error="[INVALID_ARGUMENT param=messages] maximum context length is 5 tokens")]
    error = post(url, path, {"model": MODEL, **body}).json()["error"]
    assert (error["param"], error["code"]) == (param, "context_length_exceeded")


@pytest.mark.parametrize(
    "fields", [{"add_special_tokens": True, "echo": False, "suffix": None, "best_of": 1}, {"logprobs": None}]
)
def test_a_completion_with_defaults_written_out(answering: str, fields: dict[str, Any]) -> None:
    assert post(answering, "completions", {"model": MODEL, "prompt": "Hi", **fields}).status_code == 200
