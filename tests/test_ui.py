"""The page without a browser: conversation and options to messages, stream to updates, faults, stopping."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from internvideo_client import _http_chat
from internvideo_client._request_body import _CHUNK_BYTES, JsonBody, LocalFile
from internvideo_client.ui._conversation import Turn, messages, sampled
from internvideo_client.ui._page import answered, shown
from internvideo_client.ui._texts import CHINESE, ENGLISH, timing_table, timing_title, words_for
from tests.asking import text_part, until
from tests.fake_triton import FakeTriton, Step, piece

USAGE = {
    "prompt_tokens": 238,
    "completion_tokens": 4,
    "internvideo": {"fetch_ms": 1.4, "decode_ms": 0.0, "vision_ms": 0.5, "first_token_ms": 80.8, "frames": 8, "cached_frames": 8},
}


@pytest.fixture
def video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = tmp_path / "clip.webm"
    path.write_bytes(b"not really a video")
    return path


def updates(url: str, turns: list[Turn], **options: Any) -> list[tuple[Any, Any, Any]]:
    async def collect() -> list[tuple[Any, Any, Any]]:
        return [update async for update in answered(url, turns, ENGLISH, **options)]

    return asyncio.run(collect())


def texts(chat: list[dict[str, Any]]) -> list[str]:
    return [message["content"][-1]["text"] for message in chat]


# ---- What was typed, and what is sent


@pytest.mark.parametrize(
    ("typed", "media", "text"),
    [
        ("What happens?", (), "What happens?"),
        (" https://example.com/a.mp4?x=1  What happens?", ("https://example.com/a.mp4?x=1",), "What happens?"),
        ("https://example.com/a.mp4发生了什么？", ("https://example.com/a.mp4",), "发生了什么？"),
        ("file:///v/a.mp4 HTTP://x.org/b.mp4 Compare.", ("file:///v/a.mp4", "HTTP://x.org/b.mp4"), "Compare."),
        ("What is at https://example.com/a.mp4?", (), "What is at https://example.com/a.mp4?"),
    ],
)
def test_urls_before_the_question_are_videos(typed: str, media: tuple[str, ...], text: str) -> None:
    turn = Turn.typed(typed, ["/uploads/c.mp4"])
    assert (turn.media, turn.text) == ((*media, "/uploads/c.mp4"), text)
    assert (turn.urls, turn.files) == (media, ("/uploads/c.mp4",))
    assert Turn.typed(turn.as_typed, turn.files) == turn


def test_a_conversation_sends_the_same_media_again_each_with_its_own_options() -> None:
    turns = [
        Turn("Where?", ("https://x.org/a.mp4",), {"num_frames": 8}, "Left."),
        Turn("And here?", ("/uploads/b.png", "/uploads/c.webm"), {"num_frames": 16}, "Right."),
        Turn("Why?"),
    ]
    newest = {"num_frames": 12, "start": 1.5}
    assert messages(sampled(turns, newest)) == [
        {
            "role": "user",
            "content": [
                {"type": "video_url", "video_url": {"url": "https://x.org/a.mp4", "num_frames": 8}},
                text_part("Where?"),
            ],
        },
        {"role": "assistant", "content": "Left."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": LocalFile(Path("/uploads/b.png"), "image/png")}},
                {"type": "video_url", "video_url": {"url": LocalFile(Path("/uploads/c.webm"), "video/webm"), **newest}},
                text_part("And here?"),
            ],
        },
        {"role": "assistant", "content": "Right."},
        {"role": "user", "content": [text_part("Why?")]},
    ]


@pytest.mark.parametrize("size", [0, 1, 2, 3, _CHUNK_BYTES - 1, _CHUNK_BYTES, 2 * _CHUNK_BYTES + 2])
def test_a_body_is_the_json_with_its_files_as_data_urls(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    document = {"a": "“é”", "b": [LocalFile(path, "video/mp4"), {"c": LocalFile(path, "x/y")}], "d": 1}
    body = JsonBody(document)
    content = base64.b64encode(path.read_bytes()).decode()
    sent = b"".join(body.pieces())
    expected = {"a": "“é”", "b": [f"data:video/mp4;base64,{content}", {"c": f"data:x/y;base64,{content}"}], "d": 1}
    assert (json.loads(sent), body.size) == (expected, len(sent))


# ---- The stream


def test_an_answer_grows_in_the_chat_and_ends_with_where_the_time_went(fake: FakeTriton, url: str, video: Path) -> None:
    fake.script = [Step([piece("Hello")]), Step([piece("▁world")])]
    fake.figures = {"preprocessing": {"frames_delivered": 8, "frames_decoded": 2}}
    came = updates(url, [Turn("What?", (str(video),))], num_frames=8, start=0, max_tokens=5, temperature=0.0)
    first, last = came[0], came[-1]
    assert first[0].stop_btn
    assert texts(first[1]) == ["What?"]
    grown = [texts(chat)[1] for _, chat, turns in came if turns[-1].answer]
    assert list(dict.fromkeys(grown)) == ["Hello", "Hello world"]
    assert (last[0].stop_btn, last[0].submit_btn) == (False, True)
    assert "6 of 8 frames from the cache" in last[1][-1]["metadata"]["title"]
    assert last[2][-1].answer == "Hello world"
    encoded = base64.b64encode(video.read_bytes()).decode()
    [request] = fake.requests
    assert request["messages"][0]["content"][0]["video_url"] == {"url": f"data:video/webm;base64,{encoded}", "num_frames": 8}
    assert request["request_output_len"] == 5
    assert "temperature" not in request


def test_a_second_turn_begins_as_the_first_was(fake: FakeTriton, url: str, video: Path) -> None:
    fake.script = [Step([piece("▁world")])]
    [*_, (_, _, turns)] = updates(url, [Turn("What?", (str(video),))], num_frames=8)
    updates(url, [*turns, Turn("Why?")], num_frames=8)
    first, second = (request["messages"] for request in fake.requests)
    assert second[:1] == first
    assert second[1:] == [{"role": "assistant", "content": " world"}, {"role": "user", "content": [text_part("Why?")]}]


@pytest.mark.parametrize("script", [[], [Step([piece("Hello")])]])
def test_a_fault_is_the_servers_sentence_and_the_question_is_back(
    fake: FakeTriton, url: str, video: Path, script: list[Step]
) -> None:
    fake.script = [*script, Step(error="[INVALID_ARGUMENT param=x] num_frames must be a multiple of 4")]
    turn = Turn("What?", ("https://x.org/a.mp4", str(video)))
    entry, chat, [failed] = updates(url, [turn])[-1]
    assert texts(chat)[-1] == "⚠️ num_frames must be a multiple of 4"
    assert entry.value["text"] == "https://x.org/a.mp4 What?"
    assert [Path(file["path"]).name for file in entry.value["files"]] == [video.name]
    assert failed.error == "num_frames must be a multiple of 4"


def test_a_server_that_is_away_a_lost_video_and_a_bug_are_sentences(
    url: str, video: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert "is the server running" in updates("http://127.0.0.1:1", [Turn("What?")])[-1][2][0].error
    lost = Turn("What?", (str(video),))
    video.unlink()
    assert updates(url, [lost])[-1][2][0].error == ENGLISH["gone"]
    monkeypatch.setattr("internvideo_client.ui._page.messages", lambda turns: 1 / 0)
    assert updates(url, [Turn("What?")])[-1][2][0].error == ENGLISH["bug"]
    assert "ZeroDivisionError" in caplog.text


def test_what_is_too_large_is_said_before_it_is_sent(
    fake: FakeTriton, url: str, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http_chat, "MAX_BODY_BYTES", 250)
    video.write_bytes(bytes(200))
    assert "too large to send" in updates(url, [Turn("What?", (str(video),))])[-1][2][0].error
    assert fake.requests == []


def test_stopping_ends_the_request_on_the_server(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")]), Step(silent=True)]

    async def stop_after_the_first_word() -> None:
        stream = answered(url, [Turn("What?")], ENGLISH)
        async for _, _, turns in stream:
            if turns[-1].answer:
                break
        await stream.aclose()

    asyncio.run(stop_after_the_first_word())
    assert fake.cancelled.wait(10)
    until(lambda: {model for model, _ in fake.stops} == {"preprocessing", "vit", "tensorrt_llm"}, "not every model was told")


# ---- Words


def test_both_languages_have_every_word() -> None:
    assert ENGLISH.keys() == CHINESE.keys()
    assert (words_for("zh-CN,zh;q=0.9"), words_for("de,en"), words_for(None)) == (CHINESE, ENGLISH, ENGLISH)


def test_timings_are_a_line_and_a_table() -> None:
    assert timing_title(USAGE, ENGLISH) == "first token after 0.08 s · 8 of 8 frames from the cache"
    assert timing_title({**USAGE, "internvideo": {}}, ENGLISH) == "238 prompt tokens, 4 generated"
    assert "| 视觉模型与合并 | 0.5 ms |" in timing_table(USAGE, CHINESE)
    assert "queue" not in timing_table(USAGE, ENGLISH)


def test_a_stopped_and_a_cut_answer_are_marked() -> None:
    turns = [Turn("A?", answer="B", ended="stopped"), Turn("C?", answer="D", ended="length", usage=USAGE)]
    titles = [message["metadata"]["title"] for message in shown(turns, ENGLISH) if "metadata" in message]
    assert titles == ["stopped", "first token after 0.08 s · 8 of 8 frames from the cache · cut at the limit of tokens"]


# ---- The command


def test_without_the_extra_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['gradio'] = None; from internvideo_client.cli import app; app(['ui'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, "pip install 'internvideo-triton[ui]'" in done.stderr) == (1, True)
