"""`internvideo chat` against an adapter, through real sockets."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from typer.testing import CliRunner

from internvideo_client.cli import app
from tests.fake_triton import FakeTriton, Step, piece, running

RUN = CliRunner().invoke


def test_local_file_is_sent_along_with_its_options(fake: FakeTriton, url: str, tmp_path: Path) -> None:
    fake.script = [Step([piece("Hello")]), Step([piece("▁world")])]
    video = tmp_path / "clip.webm"
    video.write_bytes(b"not really a video")
    result = RUN(app, ["chat", str(video), "What?", "--url", url, "--num-frames", "8", "--start", "1.5"])
    assert (result.exit_code, result.stdout) == (0, "Hello world\n")
    encoded = base64.b64encode(video.read_bytes()).decode()
    assert fake.requests[0]["messages"][0]["content"] == [
        {
            "type": "video_url",
            "video_url": {"url": f"data:video/webm;base64,{encoded}", "num_frames": 8, "start": 1.5},
        },
        {"type": "text", "text": "What?"},
    ]


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "grpc_proxy"])
def test_a_proxy_of_the_environment_does_not_stand_between_a_machine_and_itself(
    fake: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    fake.script = [Step([piece("Hello")])]
    with running(fake, tmp_path) as url:
        result = RUN(app, ["chat", "file:///a.mp4", "What?", "--url", url])
    assert (result.exit_code, result.stdout) == (0, "Hello\n")


@pytest.mark.parametrize("source", ["https://example.com/a.mp4?x=1", "file:///videos/a.mp4"])
def test_url_is_passed_through(fake: FakeTriton, url: str, source: str) -> None:
    fake.script = [Step([piece("Hello")])]
    assert RUN(app, ["chat", source, "What?", "--url", f"{url}/v1"]).exit_code == 0
    assert fake.requests[0]["messages"][0]["content"][0]["video_url"] == {"url": source}


def test_image_is_an_image(fake: FakeTriton, url: str, tmp_path: Path) -> None:
    fake.script = [Step([piece("Hello")])]
    picture = tmp_path / "a.png"
    picture.write_bytes(b"x")
    assert RUN(app, ["chat", str(picture), "What?", "--url", url]).exit_code == 0
    assert fake.requests[0]["messages"][0]["content"][0]["type"] == "image_url"


@pytest.mark.parametrize("script", [[], [Step([piece("Hello")])]])
def test_fault_is_one_line_and_exit_code_1(fake: FakeTriton, url: str, script: list[Step]) -> None:
    fake.script = [*script, Step(error="[INVALID_ARGUMENT param=x] num_frames must be a multiple of 4")]
    result = RUN(app, ["chat", "file:///a.mp4", "What?", "--url", url])
    assert result.exit_code == 1
    assert result.stderr.strip() == "error: num_frames must be a multiple of 4"


def test_missing_file_and_missing_server_are_named(tmp_path: Path) -> None:
    missing = RUN(app, ["chat", str(tmp_path / "none.mp4"), "What?"])
    assert (missing.exit_code, "No such file" in missing.stderr) == (1, True)
    away = RUN(app, ["chat", "file:///a.mp4", "What?", "--url", "http://127.0.0.1:1"])
    assert (away.exit_code, "is the server running" in away.stderr) == (1, True)


def test_a_cache_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ports = [f"--{name}=0" for name in ("port", "triton-http-port", "triton-grpc-port", "triton-metrics-port")]
    result = RUN(app, ["serve", "--device", "cpu", *ports], env={"INTERNVIDEO_CACHE": str(tmp_path / "file" / "cache")})
    assert result.exit_code == 1
    assert "Not a directory" in result.stderr


def test_impossible_serve_option_is_explained() -> None:
    result = RUN(app, ["serve", "--num-frames", "3"])
    assert (result.exit_code, "--num-frames must be a positive multiple of 4" in result.stderr) == (1, True)
