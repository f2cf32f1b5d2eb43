"""The whole system as people use it: OpenAI HTTP in, real tritonserver, real video files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import OpenAI

from internvideo_server.launch import RunningServer
from tests.asking import MODEL, answer, body, client, text_part, video_part

pytestmark = pytest.mark.server


def test_the_old_systems_request_works_unchanged(server: RunningServer, media_dir: Path) -> None:
    # The JSON of the curl in NetEase-Media/grps_trtllm's docs/intern-video2.5.md, with another path.
    request = """{
        "model": "InternVideo2_5",
        "messages": [{"role": "user", "content": [
            {"type": "text", "text": "详细描述一下这个视频的内容。"},
            {"type": "video_url", "video_url": {"url": "file://%s/v0.mp4"}}
        ]}],
        "max_tokens": 256
    }"""
    with client(server.adapter_url) as http:
        headers = {"Content-Type": "application/json"}
        response = http.post("/v1/chat/completions", content=request % media_dir, headers=headers)
    answered = response.json()
    assert response.status_code == 200
    assert answered["object"] == "chat.completion"
    assert answered["choices"][0]["message"]["role"] == "assistant"
    assert answered["choices"][0]["finish_reason"] in ("stop", "length")
    usage = answered["usage"]
    assert usage["prompt_tokens"] > 80 * 16  # the visual tokens of 80 frames count
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_openai_sdk_gets_the_same_answer_plain_and_streamed(server: RunningServer, media_dir: Path) -> None:
    sdk = OpenAI(base_url=server.openai_url, api_key="none", max_retries=0)
    new = video_part(media_dir / "v1.mp4", num_frames=8, start=0.3)  # asked about by no other test
    request = body(new, text_part("What moves?"), max_tokens=24)
    plain = sdk.chat.completions.create(**request)
    chunks = list(sdk.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == plain.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == plain.choices[0].finish_reason
    for usage in (chunks[-1].usage, plain.usage):
        timings = usage.model_extra["internvideo"]
        assert timings["first_token_ms"] > 0 and timings["vision_queue_ms"] >= 0 and timings["fetch_ms"] > 0
        assert timings["frames"] == 8
        counts = (usage.prompt_tokens, usage.completion_tokens)
        assert counts == (plain.usage.prompt_tokens, plain.usage.completion_tokens)
    assert plain.usage.model_extra["internvideo"]["decode_ms"] > 0
    assert plain.usage.model_extra["internvideo"]["cached_frames"] == 0
    assert chunks[-1].usage.model_extra["internvideo"]["cached_frames"] == 8
    (model,) = sdk.models.list()
    assert model.id == MODEL
    told = model.model_dump()
    assert told["max_frames"] == 128 and told["max_model_len"] >= 128 * 16


def test_a_stream_ends_with_done(server: RunningServer) -> None:
    with client(server.adapter_url) as http:
        events = http.post("/v1/chat/completions", json=body(text_part("hello"), stream=True)).text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"


def test_text_alone_is_answered(server: RunningServer) -> None:
    with client(server.adapter_url) as http:
        assert answer(http, text_part("hello"), max_tokens=8)


def test_a_second_turn_continues_the_conversation(server: RunningServer, media_dir: Path) -> None:
    first = {"role": "user", "content": [video_part(media_dir / "v2.mp4", num_frames=8), text_part("What is this?")]}
    with client(server.adapter_url) as http:
        one = http.post("/v1/chat/completions", json={"model": MODEL, "messages": [first], "max_tokens": 8}).json()
        turns = [first, one["choices"][0]["message"], {"role": "user", "content": "And then?"}]
        two = http.post("/v1/chat/completions", json={"model": MODEL, "messages": turns, "max_tokens": 8})
    assert two.status_code == 200
    assert two.json()["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"] + one["usage"]["completion_tokens"]


def test_eight_videos_at_once_get_the_answers_they_get_alone(server: RunningServer, media_dir: Path) -> None:
    parts = [video_part(media_dir / f"v{i}.mp4", num_frames=8) for i in range(8)]

    def ask(part: dict[str, object]) -> str:
        with client(server.adapter_url) as http:
            return answer(http, part, text_part("Describe this video."), max_tokens=24)

    alone = [ask(part) for part in parts]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(ask, parts))
    assert together == alone
    assert len(set(alone)) == 8  # the videos differ, and so do the answers


def test_a_seed_gives_the_same_sample_beside_other_requests(server: RunningServer) -> None:
    def ask(seed: int) -> str:
        with client(server.adapter_url) as http:
            return answer(http, text_part("Tell me a story."), max_tokens=24, temperature=1.0, seed=seed)

    alone = [ask(seed) for seed in (1, 2, 1)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(ask, [1, 2, 3, 4]))
    assert alone[0] == alone[2] == together[0]
    assert alone[1] == together[1]
    assert len(set(together)) == 4


@pytest.mark.parametrize("options", [{"num_frames": 12}, {"fps": 4}, {"num_frames": 4, "start": 1, "end": 2.5}])
def test_sampling_options_set_the_number_of_frames(server: RunningServer, media_dir: Path, options: dict[str, float]) -> None:
    with client(server.adapter_url) as http:
        counts = []
        for part in (video_part(media_dir / "v3.mp4", num_frames=4), video_part(media_dir / "v3.mp4", **options)):
            reply = http.post("/v1/chat/completions", json=body(part, text_part("?"), max_tokens=1))
            counts.append(reply.json()["usage"]["prompt_tokens"])
    frames = {"num_frames": options.get("num_frames"), "fps": 20}["fps" if "fps" in options else "num_frames"]
    per_frame = (counts[1] - counts[0]) / (frames - 4) if frames != 4 else 0
    assert counts[1] == counts[0] if frames == 4 else 20 <= per_frame <= 30  # 16 visual tokens and the "FrameN: " words


def test_an_answer_stops_before_a_stop_string(server: RunningServer) -> None:
    with client(server.adapter_url) as http:
        whole = answer(http, text_part("Tell me a story."), max_tokens=24)
        stop = whole[6:9]
        reply = http.post("/v1/chat/completions", json=body(text_part("Tell me a story."), max_tokens=24, stop=[stop])).json()
    assert reply["choices"][0]["message"]["content"] == whole[: whole.index(stop)]
    assert reply["choices"][0]["finish_reason"] == "stop"
