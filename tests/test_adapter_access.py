"""Who may ask: keys, hosts, origins, each key's share; and sockets that come too slowly."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
import trustme

from tests.adapter_process import AdapterProcess, received
from tests.fake_triton import FakeTriton, Step, piece, running
from tests.serving import certificate_files

QUESTION = {"model": "InternVideo2_5", "messages": [{"role": "user", "content": "What is this?"}]}
PATIENCE_S = 30.0
SLOW_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
)


def get(url: str, path: str, **headers: str) -> httpx2.Response:
    return httpx2.get(f"{url}{path}", headers={name.replace("_", "-"): value for name, value in headers.items()})


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not (met := condition()) and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    return met


def test_every_route_but_health_and_the_page_asks_for_a_key(fake: FakeTriton, tmp_path: Path) -> None:
    with running(fake, tmp_path, api_key=("one", "two")) as url:
        for path in ("/v1/models", "/version", "/metrics", "/openapi.json", "/v1/files", "/nothing"):
            assert get(url, path).status_code == get(url, path, Authorization="Bearer three").status_code == 401, path
            assert get(url, path, Authorization="Basic one").status_code == 401
        refused = get(url, "/v1/models")
        assert refused.json()["error"]["code"] == "invalid_api_key" and refused.headers["www-authenticate"] == "Bearer"
        assert get(url, "/v1/models", Authorization="Bearer two").status_code == 200
        assert get(url, "/metrics", Authorization="Bearer one").status_code == 200
        for path in ("/health/live", "/ping", "/page/"):
            assert get(url, path).status_code == 200, path
        assert httpx2.post(f"{url}/v1/chat/completions", json=QUESTION).status_code == 401
    assert fake.requests == []


def test_the_page_and_the_docs_can_be_left_out(fake: FakeTriton, tmp_path: Path) -> None:
    with running(fake, tmp_path, page=False) as url:
        for path in ("/", "/page/", "/docs/"):
            assert get(url, path).status_code == 404, path
        assert get(url, "/v1/models").status_code == 200


def test_metrics_may_have_a_key_of_their_own(fake: FakeTriton, tmp_path: Path) -> None:
    with running(fake, tmp_path, metrics_key="m") as url:
        assert get(url, "/metrics").status_code == 401
        assert get(url, "/metrics", Authorization="Bearer m").status_code == 200
        assert get(url, "/v1/models").status_code == 200


def test_a_key_file_needs_a_key(fake: FakeTriton, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# nobody\n\n")
    with pytest.raises(ValueError, match="has no key"), running(fake, tmp_path, api_key_file=file):
        pass


def test_a_key_has_its_share_of_requests(fake: FakeTriton, tmp_path: Path) -> None:
    gate = threading.Event()
    fake.script = [Step([piece("Hello")], gate=gate)]
    with running(fake, tmp_path, api_key=("one", "two"), max_requests_per_key=1) as url:
        answers: list[httpx2.Response] = []

        def ask(key: str) -> httpx2.Response:
            headers = {"Authorization": f"Bearer {key}"}
            return httpx2.post(f"{url}/v1/chat/completions", json=QUESTION, headers=headers, timeout=PATIENCE_S)

        first = threading.Thread(target=lambda: answers.append(ask("one")))
        first.start()
        assert fake.reached.wait(PATIENCE_S)
        second = ask("one")
        assert second.status_code == 429 and int(second.headers["retry-after"]) >= 1
        gate.set()
        first.join()
        assert answers[0].status_code == ask("two").status_code == ask("one").status_code == 200


def test_a_key_has_its_share_of_bytes_and_all_have_theirs(fake: FakeTriton, tmp_path: Path) -> None:
    body = QUESTION | {"user": "x" * (2 << 20)}
    with running(fake, tmp_path, api_key=("one",), max_bodies_mb_per_key=1) as url:
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": "Bearer one"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_bytes")
    (tmp_path / "all").mkdir()
    gate = threading.Event()
    fake.script = [Step([piece("Hello")], gate=gate)]
    with running(fake, tmp_path / "all", max_bodies_mb=3) as url:
        first = threading.Thread(target=lambda: httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S))
        first.start()
        assert fake.reached.wait(PATIENCE_S)
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy") and "retry-after" in answer.headers
        gate.set()
        first.join()
        assert httpx2.post(f"{url}/v1/chat/completions", json=body).status_code == 200


def test_hosts_that_are_not_allowed_are_refused(fake: FakeTriton, tmp_path: Path) -> None:
    with running(fake, tmp_path, allowed_hosts=("127.0.0.1", "video.example")) as url:
        assert get(url, "/health/live").status_code == get(url, "/v1/models", Host="VIDEO.example:80").status_code == 200
        assert get(url, "/health/ready", Host="10.0.0.7:9997").status_code == 200  # a balancer asks by address
        refused = get(url, "/v1/models", Host="attacker.example")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")


def test_pages_of_other_sites_are_refused_unless_they_are_allowed(fake: FakeTriton, tmp_path: Path) -> None:
    def form(url: str, origin: str) -> int:
        files = {"file": ("a.mp4", b"x")}
        return httpx2.post(f"{url}/v1/files", files=files, headers={"Origin": origin}).status_code

    state = {"state_directory": tmp_path / "state"}
    with running(fake, tmp_path, allowed_origins=("https://ok.example",), **state) as url:
        assert form(url, "https://evil.example") == 403
        assert form(url, url) == form(url, "https://ok.example") == 200
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        for origin, allowed in (("https://ok.example", "https://ok.example"), ("https://evil.example", None)):
            answer = httpx2.options(f"{url}/v1/chat/completions", headers={"Origin": origin, **preflight})
            assert answer.headers.get("access-control-allow-origin") == allowed


def test_a_body_of_another_type_is_415(fake: FakeTriton, url: str) -> None:
    answer = httpx2.post(f"{url}/v1/chat/completions", content=json.dumps(QUESTION), headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415 and fake.requests == []


def test_a_compressed_body_is_415(fake: FakeTriton, url: str) -> None:
    body = gzip.compress(json.dumps({"model": "InternVideo2_5", "messages": [{"role": "user", "content": "Hi"}]}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = httpx2.post(f"{url}/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 415 and fake.requests == []
    assert "Content-Encoding" in answer.json()["error"]["message"]


def test_request_ids_are_the_clients_or_new_and_tritons_are_others(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")])]
    answer = httpx2.post(f"{url}/v1/chat/completions", json=QUESTION, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1" and fake.requests[0]["id"] != "mine-1"
    for strange in ("", "a b", "x" * 129, "\u00e9"):
        found = httpx2.get(f"{url}/ping", headers={"X-Request-Id": strange.encode()}).headers["x-request-id"]
        assert len(found) == 32 and found != strange


def test_a_cache_is_a_keys_own_where_the_server_says_so(fake: FakeTriton, tmp_path: Path) -> None:
    fake.script = [Step([piece("Hello")])]
    with running(fake, tmp_path, api_key=("one", "two"), cache_salt="key") as url:
        for key in ("one", "two", "one"):
            httpx2.post(f"{url}/v1/chat/completions", json=QUESTION, headers={"Authorization": f"Bearer {key}"})
    first, second, third = (request["cache_salt"] for request in fake.requests)
    assert first == third != second and "one" not in first


# ---- the process: TLS, keys read again, slow senders


def test_slow_senders_are_sent_away_and_others_are_answered(tmp_path: Path) -> None:
    options = (
        "--headers-timeout=1",
        "--body-timeout=1",
        "--min-body-rate=1000000",
        "--keep-alive-timeout=1",
        "--max-connections=4",
    )
    head = SLOW_HEAD
    with AdapterProcess(tmp_path / "a", *options) as adapter:
        for sent in (b"", b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ", head, head + b"{" + b" " * 50):
            with adapter.connect() as slow:
                slow.sendall(sent)
                assert received(slow).startswith(b"HTTP/1.1 408"), sent
        with adapter.connect() as kept:
            kept.sendall(b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert received(kept).startswith(b"HTTP/1.1 200"), "an idle connection stays open"
        with adapter.connect() as both:
            both.sendall(b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n")
            answer = received(both)
            assert answer.startswith(b"HTTP/1.1 400") and b"server:" not in answer.lower()
        with adapter.connect() as large:
            large.sendall(b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: " + b"x" * 100_000)
            assert received(large).startswith(b"HTTP/1.1 431")
        many = [adapter.connect() for _ in range(8)]
        try:
            assert any(received(connection).startswith(b"HTTP/1.1 503") for connection in many[4:])
        finally:
            for connection in many:
                connection.close()
        assert eventually(lambda: get(f"http://127.0.0.1:{adapter.port}", "/ping").status_code == 200)


def test_a_name_of_somebody_else_does_not_reach_a_server_on_the_loopback(tmp_path: Path) -> None:
    with AdapterProcess(tmp_path / "a") as adapter:
        url = f"http://127.0.0.1:{adapter.port}"
        assert get(url, "/ping").status_code == get(url, "/ping", Host="localhost:1").status_code == 200
        assert get(url, "/ping", Host="rebound.example").status_code == 403


def test_keys_are_read_again_on_hangup(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    with AdapterProcess(tmp_path / "a", f"--api-key-file={file}", keys="always") as adapter:
        url = f"http://127.0.0.1:{adapter.port}"

        def status(key: str) -> int:
            return get(url, "/version", Authorization=f"Bearer {key}").status_code

        assert status("old") == status("always") == 200
        file.write_text("new\n")
        adapter.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: status("new") == 200)
        assert status("old") == 401 and status("always") == 200


def test_https(tmp_path: Path) -> None:
    chain, key, trusted = certificate_files(tmp_path, "127.0.0.1")
    with AdapterProcess(tmp_path / "a", f"--ssl-certfile={chain}", f"--ssl-keyfile={key}") as adapter:
        context = ssl.create_default_context(cafile=str(trusted))
        assert httpx2.get(f"https://127.0.0.1:{adapter.port}/ping", verify=context).status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_a_certificate_is_read_again_on_hangup(tmp_path: Path, workers: int) -> None:
    chain, key, keys = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "keys"
    old, new = trustme.CA(), trustme.CA()
    first, second = old.issue_cert("127.0.0.1"), new.issue_cert("127.0.0.1")

    def statuses(authority: trustme.CA, api_key: str) -> set[int]:
        """Of several connections, so that each process has one; 0: the certificate is not known."""
        context = ssl.create_default_context()
        authority.configure_trust(context)
        url, headers = f"https://127.0.0.1:{adapter.port}/version", {"Authorization": f"Bearer {api_key}"}
        found = set()
        for _ in range(8):
            try:
                found.add(httpx2.get(url, headers=headers, verify=context).status_code)
            except httpx2.ConnectError:
                found.add(0)
        return found

    keys.write_text("one\n")
    first.cert_chain_pems[0].write_to_path(str(chain))
    first.private_key_pem.write_to_path(str(key))
    options = (f"--ssl-certfile={chain}", f"--ssl-keyfile={key}", f"--api-key-file={keys}", f"--adapter-workers={workers}")
    with AdapterProcess(tmp_path / "a", *options, f"--state-directory={tmp_path / 'state'}") as adapter:
        assert eventually(lambda: statuses(old, "one") == {200})
        second.cert_chain_pems[0].write_to_path(str(chain))  # without its key, which is there a moment later
        keys.write_text("two\n")
        adapter.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: statuses(old, "two") == {200})
        second.private_key_pem.write_to_path(str(key))
        adapter.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: statuses(new, "two") == {200})
        assert statuses(old, "two") == {0}


def test_several_processes_answer_on_one_port_and_count_together(tmp_path: Path) -> None:
    with AdapterProcess(tmp_path / "a", "--adapter-workers=2", f"--state-directory={tmp_path / 'state'}") as adapter:
        url = f"http://127.0.0.1:{adapter.port}"
        assert all(get(url, "/ping").status_code == 200 for _ in range(20))
        assert "internvideo_requests_in_flight" in get(url, "/metrics").text


def test_a_keys_share_is_one_for_all_processes(tmp_path: Path) -> None:
    options = ("--adapter-workers=2", f"--state-directory={tmp_path / 'state'}", "--max-requests-per-key=3")
    with AdapterProcess(tmp_path / "a", *options, keys="one two") as adapter:
        url = f"http://127.0.0.1:{adapter.port}"

        def statuses(key: str) -> set[int]:
            return {get(url, "/version", Authorization=f"Bearer {key}").status_code for _ in range(8)}

        head = SLOW_HEAD.replace(b"Content-Type", b"Authorization: Bearer one\r\nContent-Type")
        slow = [socket.create_connection(("127.0.0.1", adapter.port)) for _ in range(3)]
        for connection in slow:
            connection.sendall(head)
        assert eventually(lambda: statuses("one") == {429})
        assert statuses("two") == {200}
        for connection in slow:
            connection.close()
        assert eventually(lambda: statuses("one") == {200})
