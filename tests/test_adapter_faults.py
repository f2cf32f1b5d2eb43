"""What goes wrong, and what the client hears of it; clients that leave; readiness."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.fake_triton import FakeTriton, Step, piece, running

MODEL = "InternVideo2_5"
QUEUE_FULL = "the server's queue is full: try again after the seconds that Retry-After says"
OVERFLOW = "This model's maximum context length is 8191 tokens, but the prompt has 9000 (the prompt is too long)"
CHAIN = {"preprocessing", "vit", "tensorrt_llm"}
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "What is this?"}]}
TOOL = {"type": "function", "function": {"name": "f"}}
JSON = {"Content-Type": "application/json"}
PATIENCE_S = 30.0  # of waiting for something that comes at once on a quiet machine


@pytest.fixture
def url(fake: FakeTriton, tmp_path: Path) -> Iterator[str]:
    with running(fake, tmp_path, max_body_mb=1) as base:
        yield base


def post(url: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S)


def eventually(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        threading.Event().wait(0.005)
    return met


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "status", "param", "message"),
    [
        (
            "in ensemble 'internvideo2_5', [INVALID_ARGUMENT param=messages.0.content.1.video_url.num_frames] not 3",
            400,
            "messages.0.content.1.video_url.num_frames",
            "not 3",
        ),
        ("in ensemble 'internvideo2_5', [PERMISSION_DENIED] outside", 403, None, "outside"),
        ("[NOT_FOUND] no such file", 422, None, "no such file"),
        ("[RESOURCE_EXHAUSTED] 64 requests wait", 429, None, QUEUE_FULL),
        ("in ensemble 'x', tensorrt_llm: Exceeds maximum queue size", 429, None, None),
        ("Maximum queue size of 64 has been reached, please try again later", 429, None, None),
        ("Prompt length (9000) exceeds maximum input length (8191). Set log level", 400, "messages", OVERFLOW),
        ("in ensemble 'x', Request timeout expired", 504, None, None),
        ("in ensemble 'x', Stub process 'vit_0_0' is not healthy.", 503, None, None),
        ("Failed to increase the shared memory pool size for key 'x' to 80 bytes.", 503, None, None),
        ("/secret/path is broken", 500, None, "the server failed to answer this request; its log holds the reason"),
    ],
)
def test_fault_before_the_first_token_has_its_own_status(
    fake: FakeTriton, url: str, stream: bool, text: str, status: int, param: str | None, message: str | None
) -> None:
    fake.script = [Step(error=text)]
    response = post(url, QUESTION | {"stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert message is None or error["message"] == message
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_fault_in_the_stream_is_an_event_and_the_stream_still_ends(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")]), Step(error="[INTERNAL] out of memory")]
    response = post(url, QUESTION | {"stream": True})
    assert response.status_code == 200
    *_, error, done = [event for event in response.text.split("\n\n") if event]
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "out of memory"
    assert done == "data: [DONE]"


def test_sdk_raises_the_fault_of_a_stream(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")]), Step(error="[INTERNAL] out of memory")]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(**QUESTION, stream=True)
        with pytest.raises(openai.APIError, match="out of memory"):
            list(stream)


@pytest.mark.parametrize("script", [[Step(silent=True)], [Step([piece("Hello")]), Step(silent=True)]])
def test_silence_ends_the_request_and_its_work(fake: FakeTriton, tmp_path: Path, script: list[Step]) -> None:
    fake.script = script
    with running(fake, tmp_path, first_token_timeout=0.6, inactivity_timeout=0.3) as url:
        assert post(url, QUESTION).status_code == 504
        assert eventually(lambda: {model for model, _ in fake.stops} == CHAIN)


def test_cancel_by_the_server_is_an_error_not_a_hang(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")]), Step(abort="CANCELLED")]
    assert post(url, QUESTION).status_code == 499


def test_stream_cut_before_its_end_is_an_error(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")]), Step(cut=True)]
    assert post(url, QUESTION).status_code == 500


def test_server_that_is_away_is_503(fake: FakeTriton, url: str) -> None:
    fake.script = [Step(abort="UNAVAILABLE")]
    assert post(url, QUESTION).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens_first", [False, True])
def test_client_that_leaves_ends_the_work_of_every_model(
    fake: FakeTriton, tmp_path: Path, stream: bool, tokens_first: bool
) -> None:
    fake.script = [Step([piece("Hello")])] * tokens_first + [Step(silent=True)]
    with running(fake, tmp_path) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps(QUESTION | {"stream": stream})
        request = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as client:
            client.sendall(f"{request}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            assert fake.reached.wait(PATIENCE_S)
            if stream and tokens_first:
                while b"Hello" not in client.recv(65536):
                    pass
        assert fake.cancelled.wait(PATIENCE_S)
        assert eventually(lambda: {model for model, _ in fake.stops} == CHAIN)
        request_id = fake.requests[0]["id"]
        assert {identity for _, identity in fake.stops} == {request_id}
        # A second round reaches a step that was only being handed over when the first came.
        assert eventually(lambda: len(fake.stops) == 6)


def test_stream_that_its_stop_ends_is_not_cancelled(fake: FakeTriton, tmp_path: Path) -> None:
    """Under many cancelled calls Triton 2.51 ends by signal 11."""
    stopped = threading.Event()
    fake.script = [Step([piece("Hello")]), Step(error="[CANCELLED] the request was stopped", gate=stopped)]
    with running(fake, tmp_path) as url:
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=QUESTION | {"stream": True}) as response:
            next(response.iter_lines())
        assert eventually(lambda: bool(fake.stops))
        stopped.set()


def test_stream_is_read_to_its_end_before_it_is_closed(fake: FakeTriton, tmp_path: Path) -> None:
    fake.script, fake.lingers_s = [Step([piece("Hello")])], 0.1
    with running(fake, tmp_path) as url:
        assert post(url, QUESTION).status_code == 200
    assert not fake.cancelled.is_set()


def test_answer_that_ends_by_itself_needs_no_stop(fake: FakeTriton, tmp_path: Path) -> None:
    fake.script = [Step([piece("Hello")])]
    with running(fake, tmp_path) as url:
        assert post(url, QUESTION).status_code == 200
    assert fake.stops == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"repetition_penalty": 1e-320}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", ""]}, "stop.1"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        # what would change the answer of another server, and would be lost here without a word
        ({"tool_choice": "required"}, "tool_choice"),
        ({"modalities": ["text", "audio"], "audio": {"voice": "alloy"}}, "audio"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"structured_outputs": {"choice": ["a"] * 1001}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a", "grammar": "b"}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
        ({"guided_json": {"type": "object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"mm_processor_kwargs": {"size": 16}}, "mm_processor_kwargs"),
        ({"media_io_kwargs": {"audio": {"rate": 1}}}, "media_io_kwargs"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"stop_regex": "H.*"}, "stop_regex"),
        ({"structural_tag": "x"}, "structural_tag"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"length_penalty": 2.0}, "length_penalty"),
        ({"chat_template": "x"}, "chat_template"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ],
)
def test_invalid_field_is_400_and_named(fake: FakeTriton, url: str, change: dict[str, Any], param: str) -> None:
    response = httpx2.post(f"{url}/v1/chat/completions", content=json.dumps(QUESTION | change), headers=JSON)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert fake.requests == []


def test_what_asks_for_nothing_or_is_unknown_is_no_fault(fake: FakeTriton, url: str) -> None:
    """Clients send many fields with their defaults."""
    fake.script = [Step([piece("Hello")])]
    defaults = {"n": 1, "best_of": 1, "tools": [], "tool_choice": "auto", "logit_bias": {}, "top_logprobs": 0, "audio": None}
    defaults |= {
        "min_p": 0.0,
        "ignore_eos": False,
        "stream_options": {"include_usage": True},
        "length_penalty": 1.0,
        "n": 1,
        "echo": False,
        "stop_token_ids": [],
        "modalities": ["text"],
        "response_format": {},
        "chat_template_kwargs": {"enable_thinking": False},
        "truncate_prompt_tokens": -1,
        "priority": 0,
    }
    response = post(url, QUESTION | defaults | {"user": "u", "store": True, "metadata": {"a": "b"}, "whatever": [1]})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[1]", b"null", b"[" * 5000, b'"' + b"x" * 100])
def test_malformed_body_is_400(url: str, body: bytes) -> None:
    response = httpx2.post(f"{url}/v1/chat/completions", content=body, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_nan_is_refused(url: str) -> None:
    body = json.dumps(QUESTION | {"temperature": float("nan")})
    response = httpx2.post(f"{url}/v1/chat/completions", content=body, headers=JSON)
    assert response.status_code == 400


@pytest.mark.parametrize("declared", [True, False])
def test_body_too_large_is_413(url: str, declared: bool) -> None:
    body = b"x" * (2 << 20)
    content: Any = body if declared else iter([body[:900_000], body[900_000:]])
    response = httpx2.post(f"{url}/v1/chat/completions", content=content, headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


def test_unknown_model_is_404(url: str) -> None:
    for model in ("gpt\ud800", "x" * 5000):
        response = httpx2.post(f"{url}/v1/chat/completions", content=json.dumps(QUESTION | {"model": model}), headers=JSON)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert len(response.content) < 1000


def test_unknown_path_and_method_have_an_openai_body(url: str) -> None:
    assert httpx2.get(f"{url}/v1/nothing").json()["error"]["code"] == "unknown_path"
    response = httpx2.get(f"{url}/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_models_are_listed(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).owned_by == "OpenGVLab"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")


@pytest.mark.parametrize("name", ["server", "internvideo2_5", "preprocessing", "vit", "tensorrt_llm"])
def test_not_ready_while_something_is_not_loaded(fake: FakeTriton, url: str, name: str) -> None:
    fake.not_ready = {name}
    assert httpx2.get(f"{url}/health/live").status_code == 200
    assert httpx2.get(f"{url}/health/ready").status_code == 503
    fake.not_ready = set()
    assert httpx2.get(f"{url}/health/ready").status_code == 200


@pytest.mark.parametrize("model", sorted(CHAIN))
def test_dead_process_of_a_model_is_not_ready(fake: FakeTriton, url: str, model: str) -> None:
    fake.dead = {model}
    response = httpx2.get(f"{url}/health/ready")
    assert response.status_code == 503
    assert response.json()["error"]["message"] == f"{model} does not answer"


def test_metrics_count_requests_by_their_end(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")])]
    post(url, QUESTION)
    fake.script = [Step(error="[NOT_FOUND] no such file")]
    post(url, QUESTION)
    text = httpx2.get(f"{url}/metrics").text
    for line in (
        'internvideo_requests_total{status="200"} 1.0',
        'internvideo_requests_total{status="422"} 1.0',
        "internvideo_requests_in_flight 0.0",
        "internvideo_completion_tokens_total 1.0",
        "internvideo_time_to_first_token_seconds_count 1.0",
    ):
        assert line in text
