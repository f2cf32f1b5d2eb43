"""Who may ask: adapters with keys, hosts, origins, TLS and slow sockets in front of the real Triton."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import openai
import pytest

from internvideo_client import VideoChat
from internvideo_server.launch import RunningServer
from tests.adapter_process import PATIENCE_S, AdapterProcess, received
from tests.asking import MODEL, body, text_part, until, video_part
from tests.serving import certificate_files

pytestmark = pytest.mark.server

PATH = "/v1/chat/completions"
HI = body(text_part("hi"), max_tokens=2)
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture(scope="module")
def guarded(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterProcess]:
    """Two keys, a key of the metrics, a host, an origin, one request of a key at once, caches apart."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text("one\ntwo\n")
    options = (
        f"--api-key-file={folder / 'keys'}",
        "--metrics-key=m",
        "--allowed-hosts=video.example",
        "--allowed-origins=https://ok.example",
        "--max-requests-per-key=1",
        "--cache-salt=key",
        f"--triton-secret-file={server.repository.with_name('triton_secret')}",
    )
    with AdapterProcess(folder, *options, triton=server.grpc_url, engine=server.engine) as adapter:
        until(lambda: ask(adapter, key="one").status_code == 200, "the adapter does not answer")
        yield adapter


def ask(adapter: AdapterProcess, *, key: str | None = None, path: str = PATH, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        named["Authorization"] = f"Bearer {key}"
    with httpx2.Client(base_url=adapter.url, timeout=PATIENCE_S, trust_env=False, headers=named) as http:
        return http.post(path, json=HI) if path == PATH else http.get(path)


def test_a_question_needs_a_key(guarded: AdapterProcess) -> None:
    for key in (None, "three", "one two", "ONE"):
        refused = ask(guarded, key=key)
        assert refused.status_code == 401, key
        assert refused.json()["error"].keys() == {"message", "type", "param", "code"}
        assert refused.headers["www-authenticate"] == "Bearer"
    assert ask(guarded, key="one").status_code == ask(guarded, key="two").status_code == 200
    assert ask(guarded, path="/health/ready").status_code == 200
    assert ask(guarded, path="/metrics", key="one").status_code == 401
    assert ask(guarded, path="/metrics", key="m").status_code == 200


def test_every_client_of_ours_can_pass_a_key(guarded: AdapterProcess, media_dir: Path) -> None:
    sdk = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="one", max_retries=0)
    assert sdk.chat.completions.create(**HI).choices
    assert isinstance(VideoChat(guarded.url, api_key="one").ask(None, "hi", max_tokens=2).text, str)
    command = [sys.executable, "-c", "from internvideo_client.cli import main; main()", "chat", "--url", guarded.url]
    command += [str(media_dir / "v1.mp4"), "hi", "--num-frames", "4"]
    for key, code in (("two", 0), ("three", 1)):
        asked = subprocess.run(command, env={**os.environ, "INTERNVIDEO_API_KEY": key}, capture_output=True, timeout=PATIENCE_S)
        assert asked.returncode == code, asked.stderr


def test_other_names_and_other_pages_do_not_reach_it(guarded: AdapterProcess) -> None:
    assert ask(guarded, key="one", Host="video.example").status_code == 200
    assert ask(guarded, key="one", Host="rebound.example").json()["error"]["code"] == "host_not_allowed"
    assert ask(guarded, key="one", Origin="https://evil.example").json()["error"]["code"] == "origin_not_allowed"
    allowed = ask(guarded, key="one", Origin="https://ok.example")
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://ok.example"
    for origin, answered in (("https://ok.example", "https://ok.example"), ("https://evil.example", None)):
        preflight = httpx2.options(guarded.url + PATH, headers={"Origin": origin, **PREFLIGHT}, trust_env=False)
        assert preflight.headers.get("access-control-allow-origin") == answered


def test_a_form_of_a_web_page_is_no_question(server: RunningServer) -> None:
    """By default: a page can send text/plain to the loopback without asking first."""
    headers = {"Content-Type": "text/plain", "Origin": "https://evil.example"}
    asked = httpx2.post(server.adapter_url + PATH, content=json.dumps(HI), headers=headers, trust_env=False)
    assert asked.status_code == 403
    rebound = {"Content-Type": "application/json", "Host": "evil.example"}
    assert httpx2.post(server.adapter_url + PATH, json=HI, headers=rebound, trust_env=False).status_code == 403
    assert "server" not in asked.headers


def test_a_key_has_one_request_at_work_and_others_have_theirs(guarded: AdapterProcess) -> None:
    story = {**body(text_part("Tell me a story."), stream=True), "max_tokens": 1500, "ignore_eos": True}
    bearer = {"Authorization": "Bearer one"}
    with httpx2.Client(base_url=guarded.url, timeout=PATIENCE_S, trust_env=False) as http:
        with http.stream("POST", PATH, json=story, headers=bearer) as answer:
            assert answer.status_code == 200
            refused = ask(guarded, key="one")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
            assert int(refused.headers["retry-after"]) >= 1
            assert ask(guarded, key="two").status_code == 200
    until(lambda: ask(guarded, key="one").status_code == 200, "its place is not free again")


def test_a_key_does_not_see_what_another_one_asked_about(guarded: AdapterProcess, media_dir: Path) -> None:
    request = body(video_part(media_dir / "v3.mp4", num_frames=4, start=0.41), text_part("What moves?"), max_tokens=1)

    def cached(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        asked = httpx2.post(guarded.url + PATH, json=request, headers=headers, timeout=PATIENCE_S, trust_env=False)
        frames: int = asked.json()["usage"]["internvideo"]["cached_frames"]
        return frames

    assert [cached(key) for key in ("one", "two", "one", "two")] == [0, 0, 4, 4]


def test_https_of_one_whose_certificate_is_known(server: RunningServer, tmp_path: Path) -> None:
    chain, key, trusted = certificate_files(tmp_path, "127.0.0.1")
    options = (f"--ssl-certfile={chain}", f"--ssl-keyfile={key}")
    with AdapterProcess(tmp_path, *options, triton=server.grpc_url, engine=server.engine) as adapter:
        url = f"https://127.0.0.1:{adapter.port}"
        known = ssl.create_default_context(cafile=str(trusted))
        with httpx2.Client(base_url=url, verify=known, timeout=PATIENCE_S, trust_env=False) as http:
            until(lambda: http.get("/health/ready").status_code == 200, "the adapter is not ready")
            assert http.post(PATH, json=HI).json()["model"] == MODEL
        with pytest.raises(httpx2.ConnectError), httpx2.Client(trust_env=False) as stranger:
            stranger.get(f"{url}/ping")
        with pytest.raises(httpx2.TransportError):
            ask(adapter)  # without TLS


@pytest.mark.parametrize("descriptors", [(128, 4096), (128, 128)], ids=["soft limit", "hard limit"])
def test_idle_sockets_do_not_stop_the_api(server: RunningServer, tmp_path: Path, descriptors: tuple[int, int]) -> None:
    options = ("--headers-timeout=2", "--keep-alive-timeout=2")
    with (
        AdapterProcess(tmp_path, *options, triton=server.grpc_url, engine=server.engine, descriptors=descriptors) as adapter,
        ExitStack() as sockets,
    ):
        until(lambda: ask(adapter).status_code == 200, "the adapter does not answer")
        idle = [sockets.enter_context(adapter.connect()) for _ in range(160)]
        if descriptors[1] > 128:
            assert ask(adapter).status_code == 200  # at once
        used, began = adapter.cpu_seconds(), time.monotonic()
        assert all(b" 408 " in answer or b" 503 " in answer for answer in map(received, idle))  # each is sent away
        assert adapter.cpu_seconds() - used < 0.7 * (time.monotonic() - began) + 0.5
        until(lambda: ask(adapter).status_code == 200, "the adapter does not answer any more")


def test_half_requests_are_sent_away_while_others_are_answered(server: RunningServer, tmp_path: Path) -> None:
    options = ("--headers-timeout=2", "--body-timeout=2", "--min-body-rate=1000000")
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n".encode()
    halves = [head[:40], head, head + b'{"messages": [' + b" " * 50]
    with AdapterProcess(tmp_path, *options, triton=server.grpc_url, engine=server.engine) as adapter, ExitStack() as sockets:
        until(lambda: ask(adapter).status_code == 200, "the adapter does not answer")
        slow = [sockets.enter_context(adapter.connect()) for _ in range(30)]
        for number, connection in enumerate(slow):
            connection.sendall(halves[number % len(halves)])
        assert ask(adapter).status_code == 200
        assert all(answer.startswith(b"HTTP/1.1 408") for answer in map(received, slow))
