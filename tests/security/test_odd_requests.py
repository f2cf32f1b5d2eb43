"""Requests that no client of good will sends: each is refused in OpenAI's words, and costs nobody memory or time."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import psutil
import pytest
from pydantic import BaseModel, ValidationError

from internvideo_client.protocol import ChatCompletionRequest, CompletionRequest, ResponsesRequest
from tests.adapter_process import PATIENCE_S, AdapterProcess, received
from tests.asking import body, text_part, until
from tests.fake_triton import FakeTriton, Step, piece, running

CHAT = "/v1/chat/completions"
HOST = b"HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CHUNKED = b"POST " + CHAT.encode() + b" " + HOST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
ONE_CHUNK = CHUNKED + b"2\r\n{}\r\n0\r\n"
FORM = {"Content-Type": "multipart/form-data; boundary=X"}
FILE = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
ENOUGH = 64 << 20  # more than sockets hold on both sides


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterProcess]:
    """One with files and nothing behind it."""
    folder = tmp_path_factory.mktemp("odd")
    options = (f"--state-directory={folder / 'state'}", "--max-file-mb=8", "--file-quota-mb=16", "--adapter-workers=1")
    with AdapterProcess(folder / "a", *options) as adapter:
        yield adapter


def error_of(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def sent_until_closed(connection: socket.socket, piece: bytes) -> int:
    """How many bytes the other side takes, of very many."""
    sent = 0
    try:
        while sent < ENOUGH:
            connection.sendall(piece)
            sent += len(piece)
    except OSError:
        pass
    return sent


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (ONE_CHUNK, b"A: " + b"b" * 60_000 + b"\r\n"),
        (ONE_CHUNK, b"A:b\r\n" * 13_000),
        (CHUNKED + b"2;", b"e" * 65_536),
    ],
    ids=["long trailers", "many trailers", "an extension of a chunk"],
)
def test_what_stands_beside_a_body_has_an_end(adapter: AdapterProcess, begun: bytes, piece: bytes) -> None:
    process = psutil.Process(adapter.process.pid)
    before = process.memory_info().rss
    with adapter.connect() as connection:
        connection.sendall(begun)
        assert sent_until_closed(connection, piece) < ENOUGH
    assert process.memory_info().rss - before < ENOUGH


def test_a_trailer_is_no_header(fake: FakeTriton, tmp_path: Path) -> None:
    """Seen in the answer: the id of a request is given back."""
    fake.script = [Step([piece("Hello")])]
    question = json.dumps(body(text_part("hi"), max_tokens=1)).encode()
    with running(fake, tmp_path), AdapterProcess(tmp_path / "a", triton=f"127.0.0.1:{fake.port}") as adapter:
        with adapter.connect() as connection:
            head = CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            rest = b"%x\r\n%s\r\n0\r\nX-Request-Id: of-the-trailer\r\n\r\n" % (len(question), question)
            connection.sendall(head + rest)  # at once: it is all read before anybody looks at the headers
            answer = received(connection)
    assert b" 200 OK" in answer and b"of-the-trailer" not in answer


def test_headers_behind_a_request_under_way_have_an_end(fake: FakeTriton, tmp_path: Path) -> None:
    gate = threading.Event()
    fake.script = [Step([piece("Hello")], gate=gate)]
    question = json.dumps(body(text_part("hi"), max_tokens=1)).encode()
    head = CHUNKED.replace(b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(question))
    with running(fake, tmp_path), AdapterProcess(tmp_path / "a", triton=f"127.0.0.1:{fake.port}") as adapter:
        with adapter.connect() as connection:
            connection.sendall(head + question)
            until(fake.reached.is_set, "the request does not arrive")
            connection.sendall(b"GET /ping " + HOST)
            assert sent_until_closed(connection, b"A: " + b"b" * 60_000 + b"\r\n") < ENOUGH
        gate.set()


@pytest.mark.parametrize("origin", ["http://[", "null", "//", "http://127.0.0.1:99999999"])
def test_an_origin_that_is_none_is_not_let_in(adapter: AdapterProcess, origin: str) -> None:
    refused = httpx2.post(adapter.url + CHAT, json={}, headers={"Origin": origin}, trust_env=False)
    assert error_of(refused) == (403, "origin_not_allowed")


def test_a_second_host_is_not_overlooked(adapter: AdapterProcess) -> None:
    with adapter.connect() as connection:
        connection.sendall(b"GET /v1/models " + HOST + b"Host: evil.example\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("limit", ["9" * 5000, "\u0663" * 5000, "-1", "1e3"])
def test_a_number_in_an_address_may_be_anything(adapter: AdapterProcess, limit: str) -> None:
    refused = httpx2.get(f"{adapter.url}/v1/files", params={"limit": limit}, trust_env=False)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "limit"


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ({"Content-Type": "multipart/form-data; boundary=" + "b" * 5000}, b"x"),
        (FORM, b"--X\r\n" + b"A" * 1_000_000 + b": b\r\n\r\n"),
        (FORM, b"--X\r\n" + b"A: b\r\n" * 100_000 + b"\r\nx\r\n--X--\r\n"),
        (FORM, b"--X\r\n\r\n" + b"a" * 5000 + b"\r\n--X--\r\n"),
        (FORM, (FILE + b"x\r\n") * 2 + b"--X--\r\n"),
    ],
    ids=["a long boundary", "a long header", "many headers", "a part without a name", "two files"],
)
def test_a_form_may_be_anything(adapter: AdapterProcess, kind: dict[str, str], form: bytes) -> None:
    refused = httpx2.post(f"{adapter.url}/v1/files", content=form, headers=kind, trust_env=False, timeout=PATIENCE_S)
    assert error_of(refused)[0] == 400


def test_files_that_come_at_once_have_one_quota(adapter: AdapterProcess) -> None:
    head = b"POST /v1/files " + HOST + f"Content-Type: {FORM['Content-Type']}\r\nContent-Length: 9000000\r\n\r\n".encode()

    def send() -> tuple[int, str]:
        answer = httpx2.post(f"{adapter.url}/v1/files", files={"file": ("a.mp4", b"x")}, trust_env=False)
        return (200, "") if answer.status_code == 200 else error_of(answer)

    with ExitStack() as stack:
        for upload in [stack.enter_context(adapter.connect()) for _ in range(2)]:
            upload.sendall(head + FILE + b"x" * (8 << 20))  # half the quota, and no end
        until(lambda: send() == (413, "quota_exceeded"), "files under way do not count")
    until(lambda: send() == (200, ""), "they still count")


def test_a_text_that_looks_like_a_medium_is_no_larger_than_a_text(adapter: AdapterProcess) -> None:
    """It was put together on the loop that serves everybody: five seconds for 200 MB."""
    large = "data:video/mp4;base64," + "QUJD" * (3 << 20)
    for document in (body(large), body(text_part(large)), {**body(text_part("hi")), "stop": large}):
        refused = httpx2.post(adapter.url + CHAT, json=document, trust_env=False, timeout=PATIENCE_S)
        assert error_of(refused) == (413, "request_too_large")


HALF = "\\ud83d"  # of an emoji, as JavaScript writes a text that was cut


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (CHAT, '{"messages": [{"role": "user", "content": "a%s"}], "structured_outputs": {"regex": "a%s"}}'),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "structured_outputs": {"choice": ["a%s"]}}'),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "stop": "a%s", "user": "%s"}'),
        ("/v1/responses", '{"input": "a%s", "metadata": {"%s": "%s"}}'),
    ],
)
def test_half_a_character_is_one_that_cannot_be_shown(fake: FakeTriton, tmp_path: Path, path: str, document: str) -> None:
    fake.script = [Step([piece("Hello")])]
    asked = document.replace("%s", HALF).replace("{", '{"model": "InternVideo2_5", ', 1)
    with running(fake, tmp_path, state_directory=tmp_path / "state") as url:
        headers = {"Content-Type": "application/json"}
        answer = httpx2.post(url + path, content=asked, headers=headers, trust_env=False, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CompletionRequest, {"prompt": ["a"] * 100_000}),
        (CompletionRequest, {"prompt": [-1] * 190_000}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": "a"}], "allowed_token_ids": ["a"] * 190_000}),
        (ResponsesRequest, {"input": "a", "include": [1] * 190_000}),
    ],
)
def test_of_a_hundred_thousand_faults_the_first_is_enough(kind: type[BaseModel], fields: dict[str, object]) -> None:
    """A list of all took seconds, in which nobody was answered."""
    with pytest.raises(ValidationError) as refused:
        kind.model_validate({"model": "InternVideo2_5", **fields})
    assert refused.value.error_count() < 100
