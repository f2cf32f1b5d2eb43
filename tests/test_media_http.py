"""Fetching over HTTP against a real server on this machine, which an ordinary policy must refuse to reach."""

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpcore2
import pytest
import trustme

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.preprocessing.media import Media, MediaPolicy, _http, fetch
from internvideo_server.preprocessing.media._addresses import CheckedBackend, is_public

CONTENT = b"not really a video, but bytes"


def read(medium: Media) -> bytes:
    with medium:
        return os.pread(medium.fd, medium.size, 0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Host"]))
        path, _, argument = self.path.partition("?")
        getattr(self, "answer_" + path.strip("/"))(argument)

    def send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def answer_video(self, _: str) -> None:
        self.send(200, {}, CONTENT)

    def answer_status(self, status: str) -> None:
        self.send(int(status), {}, b"no")

    def answer_redirect(self, target: str) -> None:
        self.send(302, {"Location": target})

    def answer_hops(self, left: str) -> None:
        self.send(302, {"Location": f"/hops?{int(left) - 1}" if int(left) > 1 else "/video"})

    def answer_large(self, _: str) -> None:
        self.send(200, {"Content-Length": str(1 << 40)})

    def answer_endless(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"400\r\n" + bytes(1024) + b"\r\n")
        except OSError:
            self.close_connection = True
            self.server.left.set()

    def answer_drip(self, _: str) -> None:
        self.close_connection = True
        try:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            while not self.server.end.wait(0.01):
                self.wfile.write(b"x")
        except OSError:
            self.server.left.set()

    def answer_short(self, _: str) -> None:
        self.send(200, {"Content-Length": "1000"}, CONTENT)
        self.close_connection = True

    def answer_gzip(self, _: str) -> None:
        self.send(200, {"Content-Encoding": "gzip"}, CONTENT)

    def answer_silent(self, _: str) -> None:
        self.server.asked.set()
        self.server.end.wait()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str]] = []
        self.asked, self.end, self.left = threading.Event(), threading.Event(), threading.Event()

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.server_port}/{path}"

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.end.set()
        server.shutdown()
        thread.join()


INTERNAL = MediaPolicy(private_hosts=("127.0.0.1", "localhost"), max_bytes=100_000, read_timeout=5.0)


def refusal(url: str, policy: MediaPolicy = INTERNAL, deadline: Deadline | None = None) -> ServingError:
    with pytest.raises(ServingError) as caught:
        fetch(url, policy, "here.url", deadline).close()
    return caught.value


def test_a_download_is_the_content(server: Server) -> None:
    assert read(fetch(server.url("video"), INTERNAL)) == CONTENT
    assert server.seen == [("/video", f"127.0.0.1:{server.server_port}")]


def test_the_ordinary_policy_never_reaches_this_machine(server: Server) -> None:
    port = server.server_port
    for host in ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
        error = refusal(f"http://{host}:{port}/video", MediaPolicy())
        assert error.code in (ErrorCode.PERMISSION_DENIED, ErrorCode.UNAVAILABLE), host  # a resolver may not know the form
        assert error.param == "here.url"
    assert refusal(server.url("video"), MediaPolicy()).code is ErrorCode.PERMISSION_DENIED
    assert server.seen == []


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 127.9.9.9 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 192.0.2.1 198.18.0.1 224.0.0.1 "
    "240.0.0.1 255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 ff02::1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 "
    "2002:7f00:1:: 64:ff9b::7f00:1 2001:db8::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 fec0::1".split(),
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


def test_the_checked_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["8.8.8.8", "127.0.0.1"])  # a resolver that changes its mind
    connected: list[str] = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(_: Any, host: str, *__: Any) -> httpcore2.NetworkStream:
        connected.append(host)
        raise httpcore2.ConnectError("stop here")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", connect)
    assert refusal("http://rebinding.example/x", MediaPolicy()).code is ErrorCode.UNAVAILABLE
    assert connected == ["8.8.8.8"]


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert refusal("http://mixed.example/x", MediaPolicy()).code is ErrorCode.PERMISSION_DENIED


def test_a_second_address_is_tried_when_the_first_does_not_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:  # bound, not listening: refuses
        unused.bind(("127.0.0.2", server.server_port))
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in ("127.0.0.2", "127.0.0.1")]
        resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda h, *a, **k: found if h == "localhost" else resolve(h, *a, **k))
        assert read(fetch(server.url("video", "localhost"), INTERNAL)) == CONTENT


def test_redirects_are_followed_to_a_limit(server: Server) -> None:
    assert read(fetch(server.url("hops?3"), INTERNAL)) == CONTENT
    assert refusal(server.url("hops?4")).code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "target",
    [
        "http://localhost/video",
        "file:///etc/passwd",
        "//localhost/x",
        "gopher://127.0.0.1/",
        "http://[::1]/x",
        "data:;base64,QQ==",
    ],
)
def test_every_hop_is_checked_like_the_first(target: str, server: Server) -> None:
    policy = replace(INTERNAL, allowed_hosts=("videos.example",), private_hosts=("127.0.0.1",))
    assert refusal(server.url(f"redirect?{target}"), policy).code is ErrorCode.PERMISSION_DENIED
    assert len(server.seen) == 1


@pytest.mark.parametrize("target", ["http://", "http://user@127.0.0.1/", "http://a\\@127.0.0.1/", "http://127.0.0.1:0/"])
def test_a_redirect_to_a_malformed_url_is_refused(target: str, server: Server) -> None:
    assert refusal(server.url(f"redirect?{target}")).code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "url", ["http://", "http:///x", "https://u:p@h/", "http://a b/", "http://h:0/", "http://h:99999/", "http://a\\@b/", "http:x"]
)
def test_malformed_urls_are_the_clients_fault(url: str) -> None:
    assert refusal(url, MediaPolicy()).code is ErrorCode.INVALID_ARGUMENT


def test_hosts_that_are_not_listed_are_refused_before_they_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    policy = MediaPolicy(allowed_hosts=("videos.example",))
    assert refusal("http://videos.example.evil.example/x", policy).code is ErrorCode.PERMISSION_DENIED


@pytest.mark.parametrize("listed", ["LOCALHOST", "localhost.", "[::1]", "bücher.example", "xn--bcher-kva.example"])
def test_a_host_is_the_same_however_it_is_written(listed: str) -> None:
    policy = MediaPolicy(allowed_hosts=("videos.example",), private_hosts=(listed,))
    written = {"[::1]": ("::1",)}.get(
        listed, ("localhost", "Localhost.") if "local" in listed.lower() else ("xn--bcher-kva.example",)
    )
    assert all(policy.takes_host(host) and policy.takes_private(host) for host in written)
    assert policy.takes_host("Videos.Example.") and not policy.takes_private("videos.example")


def test_a_private_host_that_is_listed_opens_no_other(server: Server) -> None:
    policy = replace(INTERNAL, private_hosts=("127.0.0.1",))
    assert read(fetch(server.url("video"), policy)) == CONTENT
    assert refusal(server.url("video", "localhost"), policy).code is ErrorCode.PERMISSION_DENIED
    assert len(server.seen) == 1


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
def test_without_http_media_nothing_is_looked_up(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    error = refusal(f"{scheme}://127.0.0.1/x", replace(INTERNAL, http=False))
    assert (error.code, error.param) == (ErrorCode.PERMISSION_DENIED, "here.url")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, ErrorCode.NOT_FOUND),
        (410, ErrorCode.NOT_FOUND),
        (403, ErrorCode.INVALID_ARGUMENT),
        (304, ErrorCode.INVALID_ARGUMENT),
        (429, ErrorCode.UNAVAILABLE),
        (503, ErrorCode.UNAVAILABLE),
    ],
)
def test_the_hosts_answer_decides_whose_fault_it_is(status: int, code: ErrorCode, server: Server) -> None:
    error = refusal(server.url(f"status?{status}"))
    assert error.code is code
    assert str(status) in error.message


@pytest.mark.parametrize("path", ["large", "endless"])
def test_too_much_is_refused_before_it_is_read(path: str, server: Server) -> None:
    error = refusal(server.url(path))
    assert error.code is ErrorCode.INVALID_ARGUMENT
    assert "100000" in error.message
    if path == "endless":
        assert server.left.wait(5)


@pytest.mark.parametrize(("path", "code"), [("short", ErrorCode.UNAVAILABLE), ("gzip", ErrorCode.INVALID_ARGUMENT)])
def test_half_or_compressed_content_is_refused(path: str, code: ErrorCode, server: Server) -> None:
    assert refusal(server.url(path)).code is code


@pytest.mark.parametrize("word", ["", "aws-chunked", "Identity", "UTF-8", "none", "binary", "aws-chunked, identity"])
def test_what_object_stores_write_as_an_encoding_is_none(word: str) -> None:
    assert _http._real_encodings(word) == ""


@pytest.mark.parametrize("word", ["gzip", "GZIP", "br", "deflate", "zstd", "compress", "aws-chunked, gzip"])
def test_real_encodings_are_known(word: str) -> None:
    assert _http._real_encodings(word)


def test_a_closed_port_and_an_unknown_host_are_unavailable(server: Server) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert refusal(f"http://127.0.0.1:{closed.getsockname()[1]}/").code is ErrorCode.UNAVAILABLE
    policy = replace(INTERNAL, allowed_hosts=("no-such-host.invalid",))
    assert refusal("http://no-such-host.invalid/", policy).code is ErrorCode.UNAVAILABLE


def test_a_silent_host_runs_into_the_read_timeout(server: Server) -> None:
    error = refusal(server.url("silent"), replace(INTERNAL, read_timeout=0.1))
    assert error.code is ErrorCode.UNAVAILABLE
    assert "in time" in error.message


def test_a_download_has_a_total_limit(server: Server) -> None:
    error = refusal(server.url("silent"), replace(INTERNAL, total_timeout=0.1))
    assert error.code is ErrorCode.UNAVAILABLE
    assert "longer than 0.1 s" in error.message


def test_a_connection_is_closed_when_nobody_waits_for_its_headers_any_more(server: Server) -> None:
    assert refusal(server.url("drip"), replace(INTERNAL, total_timeout=0.1)).code is ErrorCode.UNAVAILABLE
    assert server.left.wait(5)


def test_no_further_address_is_tried_when_nobody_waits_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, left = [], threading.Event()

    def connect_tcp(self: object, address: str, *_: object) -> None:
        tried.append(address)
        left.set()
        raise httpcore2.ConnectTimeout

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", connect_tcp)
    monkeypatch.setattr(CheckedBackend, "_checked_addresses", lambda *_: ["192.0.2.1", "192.0.2.2"])
    with pytest.raises(httpcore2.ConnectTimeout):
        CheckedBackend(INTERNAL, None, left).connect_tcp("example.org", 80)
    assert tried == ["192.0.2.1"]


def test_a_deadline_ends_a_download(server: Server) -> None:
    assert refusal(server.url("silent"), deadline=Deadline.after(0.1)).code is ErrorCode.DEADLINE_EXCEEDED


def test_a_cancel_ends_a_download_at_once(server: Server) -> None:
    assert refusal(server.url("silent"), deadline=Deadline(cancelled=server.asked.is_set)).code is ErrorCode.CANCELLED
    assert not server.end.is_set()


def test_tls_asks_for_the_name_although_the_address_is_pinned(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    names: list[str | None] = []
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(theirs)
    theirs.sni_callback = lambda _, name, __: names.append(name)
    server.socket = theirs.wrap_socket(server.socket, server_side=True)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    monkeypatch.setattr(_http, "_tls", lambda: ours)
    assert read(fetch(server.url("video", "localhost", "https"), INTERNAL)) == CONTENT
    assert names == ["localhost"]
    other_name = refusal(server.url("video", "127.0.0.1", "https"))
    assert other_name.code is ErrorCode.UNAVAILABLE
    assert "certificate" in other_name.message
