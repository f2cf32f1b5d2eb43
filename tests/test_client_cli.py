"""`internvideo chat` against an adapter, through real sockets."""

from __future__ import annotations

import base64
import json
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from internvideo_client import ApiError, VideoChat
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


def test_a_large_file_tells_how_much_of_it_is_sent(fake: FakeTriton, url: str, tmp_path: Path) -> None:
    fake.script = [Step([piece("Hello")])]
    video = tmp_path / "clip.mp4"
    video.write_bytes(bytes(3_000_000))
    told: list[tuple[int, int]] = []
    VideoChat(url, on_upload=lambda done, total: told.append((done, total))).ask(video, "What?")
    [total] = {total for _, total in told}
    assert total > 4_000_000  # base64
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert sum(done < total for done, _ in told) >= 4
    assert told[-1] == (total, total)


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
    ports = [f"--{name}=0" for name in ("port", "triton-grpc-port", "triton-metrics-port")]
    result = RUN(app, ["serve", "--device", "cpu", *ports], env={"INTERNVIDEO_CACHE": str(tmp_path / "file" / "cache")})
    assert result.exit_code == 1
    assert "Not a directory" in result.stderr


def test_impossible_serve_option_is_explained() -> None:
    result = RUN(app, ["serve", "--num-frames", "7"], env={"COLUMNS": "200"})
    assert (result.exit_code, "--num-frames 7: must be a multiple of 4" in result.stderr) == (2, True)


def lines(*entries: dict[str, object] | str) -> str:
    return "".join(f"{entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)}\n" for entry in entries)


def request(custom_id: str) -> dict[str, object]:
    return {"custom_id": custom_id, "body": {"model": "InternVideo2_5", "messages": [{"role": "user", "content": "a\u2028b"}]}}


def test_batch_goes_on_where_it_was_killed(fake: FakeTriton, url: str, tmp_path: Path) -> None:
    fake.script = [Step([piece("Hello")])]
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text(lines(*map(request, "abc")))
    whole = {"custom_id": "a", "response": {"status_code": 200, "body": {"text": "a\u2028b"}}, "error": None}
    refused = {"custom_id": "b", "response": {"status_code": 503, "body": {}}, "error": None}
    out.write_text(lines(whole, refused) + '{"custom_id": "c", "respo')  # as kill -9 leaves it
    result = RUN(app, ["batch", str(asked), str(out), "--url", url])
    assert (result.exit_code, result.stderr.strip()) == (0, "2 answered, 0 failed")
    assert len(fake.requests) == 2
    found = [json.loads(line) for line in out.read_text().split("\n")[:-1]]
    assert found[0] == whole
    assert sorted(each["custom_id"] for each in found) == ["a", "b", "c"]


@pytest.mark.parametrize("content", [lines(request("a")), "my notes\n", lines({"custom_id": "a"})])
def test_batch_does_not_write_into_a_file_that_is_not_its_own(url: str, tmp_path: Path, content: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(lines(request("a")))
    out = file if content == file.read_text() else tmp_path / "other"
    out.write_text(content)
    result = RUN(app, ["batch", str(file), str(out), "--url", url])
    assert (result.exit_code, "line 1: no answer of `batch`" in result.stderr) == (1, True)
    assert out.read_text() == content


@pytest.mark.parametrize("bad", ["garbage", '{"custom_id": "a"}', '{"custom_id": "a", "body": 1}', lines(request("a"))])
def test_batch_names_the_line_that_is_no_request(url: str, tmp_path: Path, bad: str) -> None:
    (tmp_path / "in.jsonl").write_text(lines(request("a"), bad))
    result = RUN(app, ["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--url", url])
    assert (result.exit_code, "in.jsonl, line 2: " in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--streams", "0,2"], "numbers from 1 on"),
        (["--streams", "a"], "numbers from 1 on"),
        (["--plot", "x.xyz"], "ends with .png"),
        (["--json", "/nowhere/x.json"], "No such file or directory"),
        (["--url", "http://127.0.0.1:99999"], "a port that cannot be"),
        (["--url", "http://"], "has no host"),
    ],
)
def test_bench_measures_nothing_where_its_options_are_wrong(fake: FakeTriton, url: str, options: list[str], message: str) -> None:
    result = RUN(app, ["bench", "--url", url, *options])
    assert (result.exit_code, message in result.stderr) == (1, True), result.stderr
    assert fake.requests == []


def test_a_video_of_standard_input_needs_its_question(url: str) -> None:
    result = RUN(app, ["chat", "-", "--url", url], input="x")
    assert (result.exit_code, "give the question, too" in result.stderr) == (1, True)


@contextmanager
def dying(gone: threading.Event, *, reset: bool) -> Iterator[str]:
    """A server that sends a piece of an answer and is gone after the event."""
    event = b'data: {"choices":[{"delta":{"content":"A yellow"},"finish_reason":null}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            lines = iter(self.rfile.readline, b"\r\n")
            sizes = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")]
            self.rfile.read(sizes[0])
            self.wfile.write(head + b"%x\r\n%s\r\n" % (len(event), event))
            gone.wait(30)
            if reset:
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.request.close()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("reset", [False, True])
def test_an_answer_that_breaks_off_is_told_as_such(reset: bool) -> None:
    gone = threading.Event()
    with dying(gone, reset=reset) as url:
        texts = iter(VideoChat(url).ask("file:///a.mp4", "What?", stream=True))
        assert next(texts) == "A yellow"
        gone.set()
        with pytest.raises(ApiError, match="the answer was cut off"):
            next(texts)


def test_an_answer_that_breaks_off_is_exit_code_1() -> None:
    gone = threading.Event()
    gone.set()
    with dying(gone, reset=False) as url:
        result = RUN(app, ["chat", "file:///a.mp4", "What?", "--url", url])
    assert (result.exit_code, result.stdout) == (1, "A yellow")
    assert "the answer was cut off" in result.stderr


def test_a_conversation_from_a_pipe_ends_with_1_where_an_answer_failed(fake: FakeTriton, url: str) -> None:
    fake.first_scripts = [[Step(error="[UNAVAILABLE] gone")], [Step([piece("Hello")])]]
    result = RUN(app, ["chat", "--url", url], input="One?\nTwo?\n")
    assert (result.exit_code, result.stdout) == (1, "Hello\n")
