"""Bodies as real clients send them, against the whole system: each has the status that routers and SDKs understand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pydantic
import pytest

from internvideo_server.launch import RunningServer
from tests.asking import client
from tests.conftest import ROOT

pytestmark = pytest.mark.server
REQUESTS = ROOT / "tests" / "data" / "requests"
QUESTION: Any = [{"role": "user", "content": "hi"}]


class Answer(pydantic.BaseModel):
    word: str


@pytest.fixture
def video(media_dir: Path) -> Path:
    return media_dir / "closed_gop.mp4"


def send(server: RunningServer, body: dict[str, Any]) -> httpx2.Response:
    with client(server.adapter_url) as http:
        return http.post("/v1/chat/completions", json={"max_tokens": 8, **body})


@pytest.mark.parametrize("case", sorted(REQUESTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_body_of_a_real_client(server: RunningServer, video: Path, case: Path) -> None:
    body = json.loads(case.read_text().replace("{VIDEO}", str(video)))
    answer = send(server, body)
    if case.stem.startswith("silent_"):
        assert answer.status_code == 400 and answer.json()["error"]["param"] == case.stem.removeprefix("silent_")
    else:
        assert answer.status_code == 200, answer.text


def test_a_context_overflow_is_told_in_the_words_that_routers_know(server: RunningServer) -> None:
    answer = send(server, {"model": "InternVideo2_5", "messages": [{"role": "user", "content": "hi " * 40_000}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is" in error["message"]


def test_media_that_are_not_there_are_no_404(server: RunningServer, media_dir: Path) -> None:
    part = {"type": "video_url", "video_url": {"url": (media_dir / "missing.mp4").as_uri()}}
    answer = send(server, {"model": "InternVideo2_5", "messages": [{"role": "user", "content": [part]}]})
    assert answer.status_code in (400, 422) and answer.json()["error"]["param"] == "messages.0.content.0.video_url.url"


def test_the_sdk_parses_an_answer_that_a_schema_forced(server: RunningServer) -> None:
    with openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as sdk:
        answer = sdk.chat.completions.parse(
            model="InternVideo2_5", messages=QUESTION, response_format=Answer, max_tokens=400, temperature=0
        )
        choice = answer.choices[0]
        assert choice.finish_reason == "length" or choice.message.parsed is not None


def test_several_answers_to_one_video(server: RunningServer, video: Path) -> None:
    part = {"type": "video_url", "video_url": {"url": video.as_uri(), "num_frames": 4}}
    body = {"model": "InternVideo2_5", "messages": [{"role": "user", "content": [part]}], "n": 3, "temperature": 1, "seed": 1}
    answer = send(server, body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]


def test_the_frames_that_would_be_seen(server: RunningServer, video: Path) -> None:
    part = {"type": "video_url", "video_url": {"url": video.as_uri(), "num_frames": 4}}
    with client(server.adapter_url) as http:
        frames = http.post("/v1/video/frames", json=part).json()["frames"]
    assert len(frames) == 4 and frames[0]["image"].startswith("data:image/jpeg;base64,")
    assert [frame["time"] for frame in frames] == sorted(frame["time"] for frame in frames)


def test_an_uploaded_file_is_asked_about(server: RunningServer, video: Path) -> None:
    with client(server.adapter_url) as http:
        file_id = http.post("/v1/files", files={"file": (video.name, video.read_bytes())}).json()["id"]
    part = {"type": "video_url", "video_url": {"url": f"file-id:{file_id}", "num_frames": 4}}
    assert send(server, {"model": "InternVideo2_5", "messages": [{"role": "user", "content": [part]}]}).status_code == 200


def test_tokens_of_a_conversation_and_back(server: RunningServer) -> None:
    with client(server.adapter_url) as http:
        told = http.post("/tokenize", json={"prompt": "hello world"}).json()
        assert told["count"] == len(told["tokens"]) > 1
        assert "hello world" in http.post("/detokenize", json={"tokens": told["tokens"]}).json()["prompt"]
        usage = send(server, {"model": "InternVideo2_5", "messages": QUESTION}).json()["usage"]
        assert http.post("/tokenize", json={"messages": QUESTION}).json()["count"] == usage["prompt_tokens"]
