"""Chat completions through real sockets: `openai` SDK and plain HTTP in front, a scripted Triton behind."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from tests.fake_triton import PROMPT_TOKENS, FakeTriton, Step, byte_ids, piece

MODEL = "InternVideo2_5"
OLD_CURL = """{"model": "InternVideo2_5", "messages": [{"role": "user", "content": [
  {"type": "text", "text": "详细描述一下这个视频的内容。"},
  {"type": "video_url", "video_url": {"url": "file:///tmp/InternVideo2_5_Chat_8B/red-panda.mp4"}}]}], "max_tokens": 256}"""
QUESTION = [{"role": "user", "content": "What is this?"}]


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def words(*texts: str) -> list[Step]:
    return [Step([piece(text)]) for text in texts]


def test_old_curl_gets_its_answer(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("红"), piece("熊猫")]), Step([]), Step([piece(".")])]
    response = httpx2.post(f"{url}/v1/chat/completions", content=OLD_CURL.encode(), headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["object"] == "chat.completion" and answer["model"] == MODEL
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "红熊猫."},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] | {"internvideo": {}} == {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": 3,
        "total_tokens": PROMPT_TOKENS + 3,
        "internvideo": {},
    }
    sent = fake.requests[0]
    assert sent["messages"] == json.loads(OLD_CURL)["messages"]
    assert sent["request_output_len"] == 256 and sent["streaming"] and sent["runtime_top_k"] == 1
    assert "temperature" not in sent
    assert answer["id"] == f"chatcmpl-{sent['id']}"


def test_stream_is_role_text_reason_usage_done(fake: FakeTriton, sdk: openai.OpenAI) -> None:
    fake.script = words("Hello", "▁world", ".")
    stream = sdk.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks[1:-2]] == ["Hello", " world", "."]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 4 + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_on_the_wire_ends_in_done(fake: FakeTriton, url: str) -> None:
    fake.script = words("Hello")
    body = {"model": MODEL, "messages": QUESTION, "stream": True}
    response = httpx2.post(f"{url}/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    parsed = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert [event["choices"][0]["finish_reason"] for event in parsed] == [None, None, "stop"]
    assert all("usage" not in event for event in parsed)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("asked", [{"stream_options": {"include_usage": True}}, {"return_frames_info": True}])
def test_an_answer_tells_where_its_time_went(fake: FakeTriton, url: str, stream: bool, asked: dict[str, Any]) -> None:
    fake.script = words("Hello", ".")
    sampled = {"frame_numbers": [1, 4], "frame_seconds": [0.1, 0.4], "damaged_frames": 1}
    fake.report = {
        "preprocessing": {"queue_seconds": 0.0005, "fetch_seconds": 0.0125, "decode_seconds": 0.25},
        "vit": {"queue_seconds": 0.002, "work_seconds": 0.3},
        "media": [
            {"frames": 80, "cached_frames": 0, "fps": 2.5, **sampled},
            {"frames": 16, "cached_frames": 16, "fps": None, **sampled},
        ],
    }
    body = {"model": MODEL, "messages": QUESTION, "stream": stream}
    response = httpx2.post(f"{url}/v1/chat/completions", json=body | (asked if stream else {}))
    last = json.loads(response.text.split("\n\n")[-3].removeprefix("data: ")) if stream else response.json()
    timings = last["usage"]["internvideo"]
    first_token = timings.pop("first_token_ms")
    assert timings == {
        "queue_ms": 0.5,
        "fetch_ms": 12.5,
        "decode_ms": 250,
        "vision_queue_ms": 2,
        "vision_ms": 300,
        "frames": 96,
        "cached_frames": 16,
        "damaged_frames": 2,
        "media": [
            {"frames": 80, "cached_frames": 0, "fps": 2.5, **sampled},
            {"frames": 16, "cached_frames": 16, **sampled},
        ],
    }
    stages = "queue;dur=0.5, fetch;dur=12.5, decode;dur=250.0, vision-queue;dur=2.0, vision;dur=300.0"
    # The headers of a stream leave before the report is there.
    assert response.headers.get("server-timing") == (None if stream else f"{stages}, first-token;dur={first_token}")


@pytest.mark.parametrize("report", [{}, {"preprocessing": None, "vit": None, "media": []}])
def test_timings_that_cannot_be_had_are_left_out(fake: FakeTriton, url: str, report: dict[str, Any]) -> None:
    fake.script, fake.report = words("Hello"), report
    fake.dead = set() if report else {"preprocessing", "vit"}
    response = httpx2.post(f"{url}/v1/chat/completions", json={"model": MODEL, "messages": QUESTION})
    assert response.status_code == 200
    assert list(response.json()["usage"]["internvideo"]) == ["first_token_ms"]


def test_half_characters_are_held_until_complete(fake: FakeTriton, sdk: openai.OpenAI) -> None:
    emoji = byte_ids("😀".encode())
    fake.script = [Step([piece("Hello")]), Step(emoji[:2]), Step(emoji[2:]), Step([piece(".")])]
    stream = sdk.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
    assert [c.choices[0].delta.content for c in stream if c.choices[0].delta.content] == ["Hello", "😀", "."]


def test_stop_string_across_tokens_is_not_leaked_and_ends_the_work(fake: FakeTriton, sdk: openai.OpenAI) -> None:
    fake.script = [*words("Hello", "E", "N", "▁red", "E", "N", "D", "▁pandas"), Step(silent=True)]
    stream = sdk.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, stop="END")
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "HelloEN red"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert fake.cancelled.wait(5), "a stream that its stop does not end"


def test_finish_reason_is_length_at_the_limit(fake: FakeTriton, sdk: openai.OpenAI) -> None:
    fake.script = words("Hello", "▁world")
    answer = sdk.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    fake.script = [Step([piece("Hello")]), Step([2])]  # </s>, a stop word, as the last token allowed
    answer = sdk.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=2)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("stop", "Hello")


def test_finish_reason_is_length_at_the_end_of_the_context(fake: FakeTriton, sdk: openai.OpenAI) -> None:
    fake.script = words("Hello", "▁world", "▁two", "▁red", "▁pandas", ".")
    answer = sdk.chat.completions.create(model=MODEL, messages=QUESTION)
    assert answer.choices[0].finish_reason == "length"
    assert fake.requests[0]["request_output_len"] == -1


def test_greedy_is_top_k_1_and_sampling_fields_reach_the_engine_under_its_names(fake: FakeTriton, sdk: openai.OpenAI) -> None:
    fake.script = words("Hello")
    ask = functools.partial(sdk.chat.completions.create, model=MODEL, messages=QUESTION)
    ask(temperature=0, top_p=0.5, seed=1)
    ask(temperature=1, top_p=0.5, seed=-1, presence_penalty=0.5, extra_body={"top_k": 20, "repetition_penalty": 1.5})
    ask(temperature=0.7, extra_body={"top_k": -1})
    ask(temperature=0.7, max_completion_tokens=5, max_tokens=9)
    ask(temperature=1e-40)
    greedy, full, all_tokens, limited, cold = fake.requests
    assert cold["runtime_top_k"] == 1 and "temperature" not in cold
    assert greedy["runtime_top_k"] == 1
    assert not {"temperature", "runtime_top_p", "seed"} & set(greedy)
    assert full["runtime_top_k"] == 20 and full["seed"] == 2**64 - 1
    assert (full["temperature"], full["runtime_top_p"]) == (1.0, 0.5)
    assert (full["presence_penalty"], full["repetition_penalty"]) == (0.5, 1.5)
    assert (all_tokens["runtime_top_k"], all_tokens["runtime_top_p"]) == (0, 1.0)
    assert limited["seed"] != all_tokens["seed"], "another seed each time where none is given"
    assert limited["request_output_len"] == 5


@pytest.mark.parametrize("stream", [False, True])
def test_log_probs_are_each_tokens_own(fake: FakeTriton, sdk: openai.OpenAI, stream: bool) -> None:
    fake.script = [
        Step([piece("红")], log_probs=[-0.5]),
        Step([piece("E"), piece(".")], log_probs=[-0.5, -1.0, -2.0]),  # cumulative, as TensorRT-LLM gives them
    ]
    answer = sdk.chat.completions.create(model=MODEL, messages=QUESTION, logprobs=True, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert [(entry.token, entry.logprob) for entry in entries] == [("红", -0.5), ("E", -1.0), (".", -2.0)]
    assert entries[0].bytes == list("红".encode())
    assert fake.requests[0]["return_log_probs"]


def test_log_probs_of_byte_pieces_tell_the_byte(fake: FakeTriton, sdk: openai.OpenAI) -> None:
    ids = byte_ids("é".encode())
    fake.script = [Step(ids, log_probs=[-0.5] * len(ids))]
    answer = sdk.chat.completions.create(model=MODEL, messages=QUESTION, logprobs=True).choices[0]
    assert answer.logprobs and answer.logprobs.content
    assert (
        bytes(byte for entry in answer.logprobs.content for byte in entry.bytes or []).decode() == answer.message.content == "é"
    )


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_plain_and_streamed_answers_are_equal(fake: FakeTriton, sdk: openai.OpenAI, batch: int) -> None:
    ids = [piece("Hello"), *byte_ids(b"\xff\xe4\xb8\xad\xe4"), piece("▁red"), 2, *byte_ids("é".encode()), *byte_ids(b"\xf0\x9f")]
    fake.script = [Step(ids[i : i + batch]) for i in range(0, len(ids), batch)]
    ask = functools.partial(sdk.chat.completions.create, model=MODEL, messages=QUESTION, max_tokens=100)
    plain = ask().choices[0].message.content
    assert plain == "Hello\ufffd中\ufffd redé\ufffd\ufffd"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True)) == plain


def test_requests_at_once_get_their_own_answers(fake: FakeTriton, sdk: openai.OpenAI) -> None:
    fake.script = words("Hello", "▁world")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: sdk.chat.completions.create(model=MODEL, messages=QUESTION), range(8)))
    assert {answer.choices[0].message.content for answer in answers} == {"Hello world"}
    assert len({answer.id for answer in answers}) == len({request["id"] for request in fake.requests}) == 8


def test_a_wrong_method_is_told_all_right_ones_of_the_path(url: str) -> None:
    for path, methods in {"/v1/files": "GET, POST", "/v1/files/a": "DELETE, GET", "/v1/chat/completions": "POST"}.items():
        response = httpx2.patch(f"{url}{path}")
        assert (response.status_code, response.headers["allow"]) == (405, methods)
