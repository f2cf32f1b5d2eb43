"""Bodies of many megabytes, against the real server: what they cost the others, and what is never built of them."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from benchmarks.large_body import measure
from internvideo_server.launch import RunningServer
from tests.asking import MODEL, answer, body, client, text_part, until, video_part
from tests.test_leaving import asking

pytestmark = pytest.mark.server

PATH = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def files(server: RunningServer) -> list[Path]:
    """Media of requests under way."""
    return list((server.repository.parent / "state" / "files").iterdir())


def padded(video: bytes, size: int) -> bytes:
    """An MP4 with a box that players skip."""
    return video + size.to_bytes(4, "big") + b"free" + bytes(size - 8)


def adapter_of(server: RunningServer) -> psutil.Process:
    port = urlsplit(server.adapter_url).port
    for process in psutil.process_iter():
        try:
            if any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections("inet")):
                return process
        except psutil.Error:
            continue
    raise AssertionError("there is no adapter")


def test_a_large_medium_gives_the_answer_of_its_file_and_leaves_nothing(server: RunningServer, media_dir: Path) -> None:
    content = padded((media_dir / "v1.mp4").read_bytes(), 8 << 20)
    (media_dir / "padded.mp4").write_bytes(content)
    for head in ("data:video/mp4;base64,", "data:video/mp4;codecs=a,b;base64,"):  # decoded while it comes, and not
        url = head + base64.b64encode(content).decode()
        with client(server.adapter_url) as http:
            sent = answer(http, {"type": "video_url", "video_url": {"url": url, "num_frames": 8}}, text_part("What moves?"))
            known = answer(http, video_part(media_dir / "padded.mp4", num_frames=8), text_part("What moves?"))
        assert sent == known
        until(lambda: not files(server), "a file was left")


def test_what_a_client_sent_is_removed_when_it_leaves_or_is_refused(server: RunningServer) -> None:
    url = "data:video/mp4;base64," + base64.b64encode(bytes(8 << 20)).decode()
    part = {"type": "video_url", "video_url": {"url": url}}
    with asking(server, body(part)):
        pass
    with client(server.adapter_url) as http:
        assert http.post(PATH, json=body(part)).status_code == 400
    until(lambda: not files(server), "a file was left")


@pytest.mark.ci
def test_a_large_body_stops_nobody(server: RunningServer, media_dir: Path) -> None:
    """Five times the targets of a quiet machine (docs/security.md has the figures): a body that is parsed takes seconds."""
    figures = measure(server.adapter_url, media_dir / "v1.mp4", 250, "Tell me a story.")
    assert figures.status == 200
    assert sorted(figures.health)[-len(figures.health) // 100 - 2] < 0.25
    assert max(figures.gaps) < 0.75


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"model": "m", "messages": [' + b",".join([b"[{},{}]"] * 2_000_000) + b"]}", 413),
        (b'{"model": "m", "messages": [' + b",".join([b"{}"] * 655_000) + b"]}", 413),
        (b'{"model": "m", "messages": [' + b",".join([b'{"role":"user","content":""}'] * 3_000) + b"]}", 400),
        (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    ],
    ids=["30 MB of pairs", "empty messages", "too many messages", "a deep nest"],
)
def test_json_is_counted_before_objects_are_built_of_it(server: RunningServer, content: bytes, status: int) -> None:
    process = adapter_of(server)
    before, used = process.memory_info().rss, process.cpu_times().user
    refused = httpx2.post(f"{server.adapter_url}{PATH}", content=content, headers=JSON, timeout=60, trust_env=False)
    assert refused.status_code == status, refused.text
    assert "more than" in refused.text or "larger than" in refused.text or "deeper than" in refused.text
    assert process.memory_info().rss - before < 200 << 20  # 1 GB of them
    assert process.cpu_times().user - used < 5  # 23 s


def test_a_length_beside_chunks_closes_the_connection(server: RunningServer) -> None:
    url = urlsplit(server.adapter_url)
    content = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    for fields in (f"Content-Length: {len(content)}\r\nTransfer-Encoding: chunked", "Content-Length: 3\r\nContent-Length: 4"):
        with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
            connection.sendall(f"{head}{fields}\r\n\r\n".encode() + content)
            answered = b""
            while data := connection.recv(4096):
                answered += data
        assert answered.startswith(b"HTTP/1.1 400")
        assert b"server:" not in answered.lower()
