"""Media over HTTP, by a real server: which frames it says that it saw, pictures as frames of a video, damage."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from internvideo_server.launch import RunningServer
from tests.asking import body, client, text_part, video_part

pytestmark = pytest.mark.server


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx2.Client]:
    with client(server.adapter_url) as http:
        yield http


def picture(level: int, **options: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (level,) * 3).save(file, "PNG")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(file.getvalue())}"}, **options}


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def asked(http: httpx2.Client, *parts: dict[str, Any], **fields: Any) -> httpx2.Response:
    return http.post("/v1/chat/completions", json=body(*parts, text_part("What is this?"), max_tokens=1, **fields))


def seen(response: httpx2.Response) -> dict[str, Any]:
    """``usage.internvideo`` of an answer or of a stream's last chunk."""
    assert response.status_code == 200, response.text
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    found: dict[str, Any] = json.loads(events[-1] if events else response.text)["usage"]["internvideo"]
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_seen_is_told_of_each_medium(http: httpx2.Client, media_dir: Path, stream: bool) -> None:
    parts = [video_part(media_dir / "v0.mp4", num_frames=4), video_part(media_dir / "v1.mp4", num_frames=8, start=1)]
    told = seen(asked(http, *parts, picture(9), stream=stream, return_frames_info=True))
    first, second, image = told["media"]
    assert [len(each["frame_numbers"]) for each in (first, second, image)] == [4, 8, 4]
    assert first["frame_seconds"] == pytest.approx([number / 15 for number in first["frame_numbers"]])
    assert min(second["frame_seconds"]) >= 1
    assert image["frame_numbers"] == [0] * 4
    assert (told["frames"], told["damaged_frames"]) == (16, 0)


def test_many_pictures_in_a_row_are_the_frames_of_one_video(http: httpx2.Client) -> None:
    (medium,) = seen(asked(http, *[picture(level) for level in range(40)]))["media"]
    assert medium["frame_numbers"] == list(range(40))
    (medium,) = seen(asked(http, *[picture(level) for level in range(200)]))["media"]  # more than --max-frames: sampled
    assert medium["frames"] == 128
    assert medium["frame_numbers"][0] == 0
    assert medium["frame_numbers"][-1] > 195
    (medium,) = seen(asked(http, *[picture(level, **{"as": "frame"}) for level in range(3)]))["media"]
    assert medium["frame_numbers"] == [0, 1, 2, 2]


def test_few_pictures_are_pictures_and_a_text_between_them_parts_two_videos(http: httpx2.Client) -> None:
    assert [each["frames"] for each in seen(asked(http, *[picture(level) for level in range(8)]))["media"]] == [4] * 8
    row = [picture(level) for level in range(9)]
    assert [each["frames"] for each in seen(asked(http, *row, text_part("and"), *row))["media"]] == [12, 12]
    kept = [picture(level, **{"as": "image"}) for level in range(9)]
    assert len(seen(asked(http, *kept))["media"]) == 9


def test_too_many_pictures_are_refused_with_what_can_be_done(http: httpx2.Client) -> None:
    error = asked(http, *[picture(level, **{"as": "image"}) for level in range(40)]).json()["error"]
    assert '"as": "frame"' in error["message"]
    assert error["param"].startswith("messages.0.content.")
    error = asked(http, picture(1, **{"as": "film"})).json()["error"]
    assert error["param"] == "messages.0.content.0.image_url.as" or "as" in error["message"]


def test_damaged_frames_are_told(http: httpx2.Client, media_dir: Path) -> None:
    content = bytearray((media_dir / "v0.mp4").read_bytes())
    late = content.index(b"mdat") + (len(content) - content.index(b"mdat")) * 8 // 10
    content[late : late + 300] = bytes(300)
    url = f"data:video/mp4;base64,{encoded(bytes(content))}"
    told = seen(asked(http, {"type": "video_url", "video_url": {"url": url, "num_frames": 40}}))
    assert 0 < told["damaged_frames"] < 20
    assert told["damaged_frames"] == told["media"][0]["damaged_frames"]


@pytest.mark.parametrize(
    "stem", ["data:video/webm;codecs=vp8,opus;base64,", "data:;base64,", "DATA:Video/MP4;charset=utf-8;BASE64,"]
)
def test_data_urls_as_browsers_and_scripts_spell_them(http: httpx2.Client, media_dir: Path, stem: str) -> None:
    content = encoded((media_dir / "v0.mp4").read_bytes())
    lines = "\r\n".join(content[at : at + 76] for at in range(0, len(content), 76))
    for spelled in (
        content,
        content.rstrip("="),
        content.replace("+", "-").replace("/", "_"),
        lines,
        content.replace("+", "%2B"),
    ):
        part = {"type": "video_url", "video_url": {"url": stem + spelled, "num_frames": 4}}
        assert seen(asked(http, part))["frames"] == 4
