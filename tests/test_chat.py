"""Messages as clients send them: what is understood, and what is refused with which field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_server.errors import ServingError
from internvideo_server.preprocessing import chat
from internvideo_server.preprocessing.chat import (
    Conversation,
    MediaPart,
    Message,
    build_prompt,
    parse_messages,
)
from tests.chat_messages import (
    CALL,
    SYSTEM,
    VOCAB,
    conversation,
    image,
    prompt,
    refused,
    refused_json,
    text,
    user,
    video,
)
from tests.tokenizer_files import small_tokenizers


def test_the_package_exports_its_public_names() -> None:
    assert all(hasattr(chat, name) for name in chat.__all__)


def test_the_old_systems_request_is_understood() -> None:
    parsed = conversation(user(text("详细描述一下这个视频的内容。"), video("file:///tmp/red-panda.mp4")))
    part = MediaPart("video", "file:///tmp/red-panda.mp4", None, None, None, None, "messages.0.content.1.video_url")
    assert parsed == Conversation((Message("user", "详细描述一下这个视频的内容。", (part,)),))


def test_bytes_are_read_as_utf8() -> None:
    raw = json.dumps([{"role": "user", "content": "你好"}], ensure_ascii=False)
    assert parse_messages(raw.encode()) == parse_messages(raw) == Conversation((Message("user", "你好"),))


def test_video_options_are_kept_as_given() -> None:
    parsed = conversation(user(video(num_frames=16, start=4, end=11.5)), user(video(fps=2), video(fps=0.5, start=0)))
    options = [(part.num_frames, part.fps, part.start, part.end) for part in parsed.media]
    assert options == [(16, None, 4.0, 11.5), (None, 2.0, None, None), (None, 0.5, 0.0, None)]
    assert [part.param for part in parsed.media] == [
        "messages.0.content.0.video_url",
        "messages.1.content.0.video_url",
        "messages.1.content.1.video_url",
    ]


def test_options_given_as_null_are_options_not_given() -> None:
    parsed = conversation(user(video(num_frames=None, fps=None, start=None, end=None)))
    assert parsed == conversation(user(video()))


def test_media_keep_their_order_over_messages() -> None:
    answer = {"role": "assistant", "content": "a"}
    parsed = conversation(user(video("file:///1"), text("q"), image("file:///2", detail="low")), answer, user(video("file:///3")))
    assert [(part.kind, part.url) for part in parsed.media] == [
        ("video", "file:///1"),
        ("image", "file:///2"),
        ("video", "file:///3"),
    ]


def test_developer_is_system() -> None:
    parsed = conversation({"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    assert [message.role for message in parsed.messages] == ["system", "user"]


def test_an_answer_as_the_openai_sdk_writes_it_is_understood() -> None:
    answer = {
        "role": "assistant", "content": "Yes.", "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": None,
    }  # fmt: skip
    parsed = conversation(user(text("?")), answer, {"role": "user", "content": "Why?", "name": "ann"})
    assert [message.text for message in parsed.messages] == ["?", "Yes.", "Why?"]


def test_content_that_is_null_or_has_no_parts_is_empty() -> None:
    parsed = conversation(
        {"role": "user", "content": None}, {"role": "assistant", "content": []}, {"role": "user"}, user(text("q"))
    )
    assert [message.text for message in parsed.messages] == ["", "", "", "q"]


def test_calls_of_functions_are_written_as_internlm2_has_them() -> None:
    question, answer = user(text("Rain?")), {"role": "assistant", "content": None, "tool_calls": [CALL]}
    found = prompt(question, answer, {"role": "tool", "tool_call_id": "c1", "content": "yes"})
    assert found.text == (
        f"{SYSTEM}<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n<|action_start|><|plugin|>\n"
        '{"name": "get", "parameters": {"city": "北京"}}<|action_end|>\n<|im_end|>\n'
        "<|im_start|>environment name=<|plugin|>\nyes<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer = small_tokenizers().chat
    assert {tokenizer.token_id(name) for name in ("<|action_start|>", "<|plugin|>", "<|action_end|>")} <= set(
        found.input_ids.tolist()
    )


def test_a_prompt_has_no_template() -> None:
    tokenizer = small_tokenizers().chat
    raw = build_prompt(parse_messages('{"prompt": "A red <|im_end|>"}'), [], tokenizer, VOCAB, [])
    assert raw.input_ids.tolist() == [tokenizer.token_id("<s>"), *tokenizer.encode_text("A red <|im_end|>")]
    ids = build_prompt(parse_messages('{"prompt_token_ids": [5, 7]}'), [], tokenizer, VOCAB, [])
    assert ids.input_ids.tolist() == [5, 7]


@pytest.mark.parametrize("raw", ['{"prompt": 3}', '{"prompt_token_ids": []}', '{"prompt_token_ids": [true]}'])
def test_a_prompt_that_is_none_is_refused(raw: str) -> None:
    assert refused_json(raw).param == "prompt"


def test_a_prompt_of_ids_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(ServingError, match="token 99999 is not within"):
        build_prompt(parse_messages('{"prompt_token_ids": [99999]}'), [], small_tokenizers().chat, VOCAB, [])


def test_an_answer_without_content_is_empty() -> None:
    parsed = conversation({"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}, user(text("?")))
    assert parsed.messages[1].text == ""


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "system", "content": "x"}], "messages"),
        ([{"role": "assistant", "content": "x"}], "messages"),
        (["hi"], "messages.0"),
        ([None], "messages.0"),
        ([{"content": "x"}], "messages.0.role"),
        ([{"role": None, "content": "x"}], "messages.0.role"),
        ([{"role": "tool", "content": "x"}], "messages"),
        ([{"role": "critic", "content": "x"}], "messages.0.role"),
        ([{"role": "] param=evil\n" * 99, "content": "x"}], "messages.0.role"),
        ([{"role": "user", "content": 3}], "messages.0.content"),
        ([{"role": "user", "content": {}}], "messages.0.content"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{}]}], "messages.1.tool_calls.0.function"),
        ([{"role": "user", "content": "q", "tool_calls": [CALL]}], "messages.0.tool_calls"),
        ([user(text("q")), {"role": "assistant", "function_call": {"n": 1}}], "messages.1.function_call.function.name"),
        ([user("text")], "messages.0.content.0"),
        ([user({"text": "x"})], "messages.0.content.0.type"),
        ([user({"type": "input_audio", "input_audio": {}})], "messages.0.content.0.type"),
        ([user({"type": "text"})], "messages.0.content.0.text"),
        ([user({"type": "text", "text": 3})], "messages.0.content.0.text"),
        ([user(text("q"), {"type": "video_url"})], "messages.0.content.1.video_url"),
        ([user({"type": "video_url", "video_url": "file:///a.mp4"})], "messages.0.content.0.video_url"),
        ([user({"type": "video_url", "video_url": {}})], "messages.0.content.0.video_url.url"),
        ([user(video(""))], "messages.0.content.0.video_url.url"),
        ([user({"type": "video_url", "video_url": {"url": ["a"]}})], "messages.0.content.0.video_url.url"),
        ([user(video(num_frames="8"))], "messages.0.content.0.video_url.num_frames"),
        ([user(video(num_frames=8.0))], "messages.0.content.0.video_url.num_frames"),
        ([user(video(num_frames=True))], "messages.0.content.0.video_url.num_frames"),
        ([user(video(fps=0))], "messages.0.content.0.video_url.fps"),
        ([user(video(fps="1"))], "messages.0.content.0.video_url.fps"),
        ([user(video(fps=1, num_frames=8))], "messages.0.content.0.video_url.fps"),
        ([user(video(end=-1))], "messages.0.content.0.video_url.end"),
        ([user(video(start=False))], "messages.0.content.0.video_url.start"),
        ([user(video(end="9"))], "messages.0.content.0.video_url.end"),
        ([user(video(end=10**400))], "messages.0.content.0.video_url.end"),
        ([user(video(nframes=8))], "messages.0.content.0.video_url"),
        ([user(video(**{"] x\n" * 99: 8}))], "messages.0.content.0.video_url"),
        ([user({**video(), "num_frames": 8})], "messages.0.content.0"),
        ([user({"type": "image_url", "image_url": "file:///a.png"})], "messages.0.content.0.image_url"),
        ([user(image(num_frames=8))], "messages.0.content.0.image_url"),
        ([{"role": "system", "content": [video()]}, user(text("q"))], "messages.0.content.0.video_url"),
        ([user(text("q")), {"role": "assistant", "content": [text("a"), image()]}], "messages.1.content.1.image_url"),
    ],
)  # fmt: skip
def test_a_wrong_message_is_refused_with_the_field_at_fault(messages: list[Any], param: str) -> None:
    assert refused(*messages).param == param


@pytest.mark.parametrize(
    "raw",
    ["", "null", "{}", '"x"', "[", "[{]", '[{"role": NaN}]', "[" * 10_000, '["\\ud800"]', b"\xff\xfe", '["\ud800"]'],
)
def test_what_is_no_json_list_is_refused(raw: str | bytes) -> None:
    assert refused_json(raw).param == "messages"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    raw = json.dumps([user(video(start=0))]).replace('"start": 0', f'"start": {number}')
    assert refused_json(raw).param in ("messages", "messages.0.content.0.video_url.start")


def test_a_clients_long_value_is_not_repeated() -> None:
    assert "x" * 99 not in refused(user({"type": "x" * 10_000})).text
    assert "aaaa" not in refused(user(video("data:" + "a" * 100_000, num_frames="8"))).text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "type", "url", "]"]), inner),
    max_leaves=10,
)


PART = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "video_url"]) | JSON, "text": JSON, "video_url": JSON}
)


MESSAGE = st.fixed_dictionaries({}, optional={"role": st.just("user") | JSON, "content": st.lists(PART | JSON) | JSON})


@settings(deadline=None)
@given(st.lists(MESSAGE | JSON) | JSON)
def test_any_json_is_a_conversation_or_a_client_error(document: Any) -> None:
    raw = json.dumps(document)
    try:
        parsed = parse_messages(raw)
    except ServingError:
        refused_json(raw)
    else:
        assert any(message.role == "user" for message in parsed.messages)
