"""What strange clients send through a real router, and what strange replicas do behind it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.router_lab import CHAT, NAMES, Replicas, Router, asking, replica_of, request, video


def raw(router: Router, text: bytes) -> bytes:
    """All that comes back on a connection of its own, until the router closes it or is silent."""
    with socket.create_connection(("127.0.0.1", router.settings.port), timeout=5) as connection:
        connection.sendall(text)
        answer = b""
        try:
            while data := connection.recv(1 << 16):
                answer += data
        except TimeoutError:
            pass
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(line.split()[1]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.")]


BODY = json.dumps(request(video("https://k.example/a"))).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"


def owner(router: Router, **headers: str) -> str:
    with asking(router.url, headers=headers) as http:
        return replica_of(http.post(CHAT, content=BODY, headers={"content-type": "application/json"}))


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics?x=1", "/%6detrics", "/metric%73", "/%2Fmetrics", "//metrics", "/./metrics"]
)
def test_no_spelling_of_the_path_shows_a_replica_s_metrics(router: Router, path: str) -> None:
    answer = raw(router, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert statuses(answer) == [404] and b"internvideo_" not in answer


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        b"Transfer-Encoding: chunked, identity\r\nContent-Length: 4\r\n\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n",
        b"Transfer-Encoding: \x0bchunked\r\nContent-Length: 4\r\n\r\n",
    ],
)
def test_no_second_request_is_smuggled_behind_another(router: Router, replicas: Replicas, framing: bytes) -> None:
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = raw(router, HEAD.replace(b"Connection: close\r\n", b"") + framing + b"0\r\n\r\n" + smuggled)
    # Either it is refused, or what follows is a request of its own, seen as such by the router: then it stands in its log.
    assert statuses(answer)[0] in (400, 422)
    assert len(statuses(answer)) == 1 or b"InternVideo2_5" in answer.split(b"HTTP/1.1 200")[-1]


def test_a_chunked_body_has_its_key_however_it_is_cut(router: Router) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        yield from (BODY[start : start + size] for start in range(0, len(BODY), size))

    home = owner(router)
    with asking(router.url) as http:
        for size in (1, 7, 60):
            answer = http.post(CHAT, content=chunks(size), headers={"content-type": "application/json"})
            assert replica_of(answer) == home


def test_a_client_that_waits_for_100_continue_gets_it_and_its_answer(router: Router) -> None:
    with socket.create_connection(("127.0.0.1", router.settings.port), timeout=20) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert connection.recv(1 << 10).startswith(b"HTTP/1.1 100")
        connection.sendall(BODY)
        answer = b""
        while data := connection.recv(1 << 16):
            answer += data
    assert statuses(answer) == [200] and owner(router).encode() in answer


def test_http_1_0_is_answered(router: Router) -> None:
    answer = raw(router, HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
    assert statuses(answer) == [200] and b"Hello" in answer


def test_an_upgrade_makes_no_tunnel(router: Router) -> None:
    upgrade = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert 101 not in statuses(raw(router, upgrade + key))


@pytest.mark.parametrize("size", [70_000, 1_000_000])
def test_headers_beyond_the_buffer_are_refused_in_json_and_others_go_on(router: Router, size: int) -> None:
    answer = raw(router, HEAD + b"X-Long: " + b"x" * size + b"\r\nContent-Length: 0\r\n\r\n")
    assert statuses(answer) in ([400], [431], [])  # closed while we were still sending
    assert owner(router) in NAMES


def test_a_large_body_has_the_key_of_its_beginning_and_one_whose_medium_comes_late_has_none(router: Router) -> None:
    long = "x" * 300_000
    home = owner(router)
    with asking(router.url) as http:
        early = [replica_of(http.post(CHAT, json=request(video("https://k.example/a"), text(long)))) for _ in range(3)]
        late = {replica_of(http.post(CHAT, json=request(text(long), video("https://k.example/a")))) for _ in range(6)}
        assert set(early) == {home} and len(late) > 1
        session = {"X-Session-Id": "somebody"}
        kept = {
            replica_of(http.post(CHAT, json=request(text(long), video("https://k.example/a")), headers=session)) for _ in range(4)
        }
        assert len(kept) == 1


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


class Refusing(BaseHTTPRequestHandler):
    """It seems ready, and refuses each question."""

    def do_GET(self) -> None:
        self.answer(200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(503)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_a_replica_that_answers_503_alone_costs_no_answer(replicas: Replicas, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            option = f"refusing=http://127.0.0.1:{server.server_address[1]}"
            with Router(tmp_path, [option, *replicas.options]) as router, asking(router.url) as http:
                router.wait_for("refusing", "UP")
                owners = {replica_of(http.post(CHAT, json=request(video(f"https://u.example/{n}")))) for n in range(16)}
                assert owners == set(NAMES) and router.servers()["refusing"].total
        finally:
            server.shutdown()
            thread.join(20)


@pytest.mark.ci
def test_a_replica_that_stands_still_gets_nothing_more(replicas: Replicas, tmp_path: Path) -> None:
    """It takes connections, and no byte comes back."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as still:
        option = f"still=http://127.0.0.1:{still.getsockname()[1]}"
        with Router(tmp_path, [option, *replicas.options]) as router:
            router.wait_for("still", "DOWN")
            with asking(router.url) as http:
                owners = {replica_of(http.post(CHAT, json=request(video(f"https://s.example/{n}")))) for n in range(12)}
            assert owners == set(NAMES)
