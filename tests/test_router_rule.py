"""HAProxy follows the rule of `internvideo_server.routing`, byte for byte."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvideo_server.launch import resolve_ports
from internvideo_server.launch.router import render
from internvideo_server.routing import LOOKED_AT, new_file_id, response_id, route
from internvideo_server.settings import RouterSettings
from tests.asking import until
from tests.router_lab import CHAT, answers, asking, needs_haproxy, video
from tests.test_routing import chat, forms, names, texts, urls


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HAProxy with the rendered configuration, but it answers where it would send a request."""
    haproxy, folder = needs_haproxy(), tmp_path_factory.mktemp("mirror")
    ports = resolve_ports({"port": ("127.0.0.1", 0), "metrics": ("127.0.0.1", 0)})
    text = render(RouterSettings(port=ports["port"], metrics_port=ports["metrics"]), Path("/tmp"))
    text = "\n".join(line for line in text.splitlines() if "stats socket" not in line)
    answer = 'http-request return status 200 hdr x-replica "%[var(txn.replica)]" hdr x-key "%[var(txn.key)]"'
    configuration = folder / "haproxy.cfg"
    configuration.write_text(text.replace("    use_backend kept", f"    {answer}\n    use_backend kept") + "\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(haproxy), "-db", "-f", str(configuration)], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{ports['port']}"
    try:
        until(lambda: process.poll() is not None or answers(url), "haproxy did not start")
        yield url
    finally:
        process.kill()
        process.wait()


def same(mirror: str, path: str, body: bytes, session: str = "") -> None:
    headers = {"content-type": "application/json", **({"x-session-id": session} if session else {})}
    with asking(mirror) as http:
        answer = http.post(path, content=body, headers=headers)
    wanted = route(path, body, session)
    assert (answer.headers.get("x-replica") or None, answer.headers.get("x-key") or None) == (wanted.replica, wanted.key)


few = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(url=urls, text=texts, name=names, number=st.integers(0, 40), session=st.sampled_from(["", "s", "a,b", "x" * 200]))
def test_haproxy_reads_a_request_as_the_rule_does(mirror: str, url: str, text: str, name: str, number: int, session: str) -> None:
    parts = [*forms(url), video(f"file-id:{new_file_id(name)}"), {"type": "text", "text": url}]
    body = chat({"type": "text", "text": text}, parts[number % len(parts)])
    same(mirror, CHAT, body, session)
    same(mirror, CHAT, body.replace(b"/", b"\\/"))


@few
@given(body=st.binary(max_size=300).map(lambda body: body.replace(b"\0", b"")))
def test_haproxy_reads_any_bytes_as_the_rule_does(mirror: str, body: bytes) -> None:
    same(mirror, CHAT, body)
    same(mirror, CHAT, b'{"video": "' + body + b'"}')


@few
@given(name=names, tail=st.sampled_from(["", "/", "/content", "x", "?a=1"]))
def test_haproxy_reads_a_path_as_the_rule_does(mirror: str, name: str, tail: str) -> None:
    for item in (f"files/{new_file_id(name)}", f"responses/{response_id(name, '0f' * 16)}", f"files/{new_file_id(None)}"):
        with asking(mirror) as http:
            answer = http.get(f"/v1/{item}{tail}")
        assert (answer.headers.get("x-replica") or None) == route(f"/v1/{item}{tail.partition('?')[0]}").replica


@pytest.mark.parametrize("before", [0, 20_000, LOOKED_AT * 3 // 4, LOOKED_AT - 4000])
def test_a_medium_behind_a_long_text_and_one_of_many_megabytes_are_seen(mirror: str, before: int) -> None:
    same(mirror, CHAT, chat({"type": "text", "text": "x" * before}, video("https://media.example/a.mp4")))
    same(mirror, CHAT, chat(video("data:video/mp4;base64," + "A" * 9_000_000)))


def test_a_body_in_small_pieces_is_read_whole(mirror: str) -> None:
    body = chat({"type": "text", "text": "x" * 9000}, video("https://media.example/a.mp4"))
    pieces = (body[i : i + 700] for i in range(0, len(body), 700))
    with asking(mirror) as http:
        answer = http.post(CHAT, content=pieces, headers={"content-type": "application/json"})
    assert answer.headers["x-key"] == route(CHAT, body).key
