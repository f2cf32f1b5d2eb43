"""`internvideo router` as a program: its folder, its commands, TLS, its end; what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from typer.testing import CliRunner

from internvideo_client.cli import app
from internvideo_server.launch import LaunchError, resolve_ports
from internvideo_server.launch.router import Replica, add, drain, find_haproxy, remove, render
from internvideo_server.settings import RouterSettings
from tests.asking import until
from tests.fake_triton import FakeTriton, Step, piece, running
from tests.router_lab import CHAT, Replicas, Router, answers, asking, needs_haproxy, replica_of, request, video
from tests.serving import certificate_files


def test_its_folder_and_socket_are_closed_to_others(router: Router) -> None:
    assert stat.S_IMODE(router.directory.stat().st_mode) == 0o700
    for file in router.directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_metrics_and_health_are_the_routers_own_and_replicas_metrics_are_not_shown(router: Router) -> None:
    with asking(router.own_url) as http:
        assert 'haproxy_backend_current_sessions{proxy="replicas"}' in http.get("/metrics").text
        assert [http.get(path).status_code for path in ("/health/live", "/health/ready", "/x")] == [200, 200, 404]
    with asking(router.url) as http:
        assert http.get("/metrics").status_code == 404
        assert http.get("/health/ready").status_code == 200


def test_with_no_replica_it_says_so_in_openai_s_words(tmp_path: Path) -> None:
    with Router(tmp_path, []) as router, asking(router.url) as http:
        answer = http.post(CHAT, json=request())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert httpx2.get(f"{router.own_url}/health/ready", trust_env=False).status_code == 503


def kill_haproxy(router: Router) -> None:
    old = router.haproxy
    os.kill(old, signal.SIGKILL)

    def back() -> bool:
        try:
            return router.haproxy != old
        except LaunchError:
            return False

    until(back, "haproxy was not started again")


def test_haproxy_that_was_killed_is_started_again_with_the_replicas_of_now(replicas: Replicas, tmp_path: Path) -> None:
    with Router(tmp_path, replicas.options[:1]) as router:
        add(router.directory, replicas.options[1])
        kill_haproxy(router)
        assert set(router.servers()) == {"r-0", "r-1"}
        with asking(router.url) as http:
            assert http.post(CHAT, json=request(video("https://k.example/a"))).status_code == 200


def test_a_replica_that_was_drained_rests_also_after_haproxy_was_killed(replicas: Replicas, tmp_path: Path) -> None:
    with Router(tmp_path, replicas.options[:2]) as router, asking(router.url) as http:
        assert drain(router.directory, "r-1", 10.0) == 0
        kill_haproxy(router)
        router.wait_for("r-0", "UP")
        assert router.servers()["r-1"].status == "MAINT"
        for number in range(6):
            answer = http.post(CHAT, json=request(video(f"https://k.example/{number}")))
            assert (answer.status_code, answer.headers["x-internvideo-replica"]) == (200, "r-0")
        add(router.directory, replicas.options[1])
        router.wait_for("r-1", "UP")
        kill_haproxy(router)
        router.wait_for("r-1", "UP")


def test_a_signal_lets_requests_end_and_takes_no_new_ones(replicas: Replicas, tmp_path: Path) -> None:
    gate, fake = threading.Event(), replicas.fakes["r-0"]
    fake.script, fake.reached = [Step([piece("Hello")], gate=gate)], threading.Event()
    results: list[httpx2.Response] = []
    try:
        with Router(tmp_path, replicas.options[:1]) as router:

            def ask() -> None:
                with asking(router.url) as http:
                    results.append(http.post(CHAT, json=request(video("https://z.example/a"))))

            thread = threading.Thread(target=ask)
            thread.start()
            assert fake.reached.wait(20)
            router.process.send_signal(signal.SIGTERM)
            until(lambda: not answers(router.url), "it still takes requests")
            assert router.process.poll() is None
            gate.set()
            thread.join(20)
            assert results[0].status_code == 200 and router.process.wait(20) == 0
    finally:
        gate.set()
        fake.script = [Step([piece("Hello")])]


def test_api_keys_and_request_ids_are_passed_on_and_tls_stands_on_both_sides(tmp_path: Path) -> None:
    needs_haproxy()
    chain, key, ca = certificate_files(tmp_path, "localhost", "127.0.0.1")
    fake = FakeTriton()
    fake.script = [Step([piece("Hello")])]
    with ExitStack() as stack:
        plain = stack.enter_context(running(fake, tmp_path, api_key=("secret",)))
        tls = stack.enter_context(tls_before(plain, chain, key))
        options = {"ssl_certfile": chain, "ssl_keyfile": key, "replica_ca_file": ca}
        router = stack.enter_context(Router(tmp_path, [f"r={tls}"], **options))
        router.wait_for("r", "UP")
        context = ssl.create_default_context(cafile=str(ca))
        http = stack.enter_context(asking(router.url, verify=context))
        assert http.post(CHAT, json=request()).status_code == 401
        headers = {"Authorization": "Bearer secret", "X-Request-Id": "mine"}
        answer = http.post(CHAT, json=request(video("https://t.example/a")), headers=headers)
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, "mine")
        add(router.directory, f"again={tls}")
        router.wait_for("again", "UP")
        remove(router.directory, "r", 10)
        assert replica_of(http.post(CHAT, json=request(video("https://t.example/a")), headers=headers)) == "again"
        trustme.CA().cert_pem.write_to_path(str(other := tmp_path / "other.pem"))
        stranger = stack.enter_context(Router(tmp_path, [f"r={tls}"], replica_ca_file=other))
        stranger.wait_for("r", "DOWN")


def test_a_new_certificate_is_shown_after_sighup_and_one_that_is_none_changes_nothing(replicas: Replicas, tmp_path: Path) -> None:
    authority, pem, ca = trustme.CA(), tmp_path / "front.pem", tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))

    def renew() -> None:
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))

    context = ssl.create_default_context(cafile=str(ca))

    def serial(router: Router) -> Any:
        with socket.create_connection(("127.0.0.1", router.settings.port), timeout=10) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as tls:
                shown: Any = tls.getpeercert()
                return shown["serialNumber"]

    renew()
    with Router(tmp_path, replicas.options, ssl_certfile=pem) as router:
        first = serial(router)
        renew()
        router.process.send_signal(signal.SIGHUP)
        until(lambda: serial(router) != first, "the old certificate is still shown")
        second = serial(router)
        pem.write_text("none")
        router.process.send_signal(signal.SIGHUP)
        until(lambda: "warning: the certificate stays as it was" in router.words, "it was not told")
        assert serial(router) == second and router.process.poll() is None


@contextmanager
def tls_before(url: str, chain: Path, key: Path) -> Iterator[str]:
    """The same server by HTTPS: another HAProxy before it."""
    port = resolve_ports({"port": ("127.0.0.1", 0)})["port"]
    with tempfile.TemporaryDirectory() as folder:
        pem, configuration = Path(folder, "both.pem"), Path(folder, "tls.cfg")
        pem.write_text(chain.read_text() + key.read_text())
        configuration.write_text(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
            f"listen tls\n  bind 127.0.0.1:{port} ssl crt {pem}\n  server s {url.removeprefix('http://')}\n"
        )
        process = subprocess.Popen([str(find_haproxy()), "-db", "-f", str(configuration)], stderr=subprocess.DEVNULL)
        try:
            yield f"https://localhost:{port}"
        finally:
            process.kill()
            process.wait()


RUN = CliRunner().invoke


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("r=10.0.0.1:9997", "give NAME=URL"),
        ("r=http://", "give NAME=URL"),
        ("r=http://h:99999", "give NAME=URL"),
        ("r=http://h/path", "give NAME=URL"),
        ("r=http://h x", "give NAME=URL"),
        ("R_1=http://h:1", "small letters"),
    ],
)
def test_a_replica_that_cannot_be_meant_is_refused(option: str, words: str) -> None:
    result = RUN(app, ["router", "--print", "--replica", option])
    assert result.exit_code == 1 and words in result.stderr


@pytest.mark.parametrize(
    ("text", "name", "host", "port", "tls"),
    [
        ("a=http://10.0.0.1:9997", "a", "10.0.0.1", 9997, False),
        ("http://10.0.0.1:9997", "10-0-0-1-9997", "10.0.0.1", 9997, False),
        ("a=https://[::1]/", "a", "::1", 443, True),
        (
            "http://pod-0.pods.ns.svc.cluster.local",
            "pod-0-pods-ns-svc-cluster-local-80",
            "pod-0.pods.ns.svc.cluster.local",
            80,
            False,
        ),
    ],
)
def test_replicas_are_called_by_name_or_by_their_address(text: str, name: str, host: str, port: int, tls: bool) -> None:
    replica = Replica.parse(text)
    assert replica == Replica(name, host, port, tls) and Replica.parse(str(replica)) == replica


def test_two_of_one_name_are_refused_and_an_unknown_one_is_not_drained(router: Router, replicas: Replicas) -> None:
    result = RUN(app, ["router", "--print", "--replica", "a=http://h:1", "--replica", "a=http://h:2"])
    assert result.exit_code == 1 and "one name" in result.stderr
    with pytest.raises(LaunchError, match="no replica nobody"):
        drain(router.directory, "nobody")
    with pytest.raises(LaunchError, match="is there already"):
        add(router.directory, "r-0=http://127.0.0.1:1")


def test_two_routers_do_not_share_a_folder(router: Router) -> None:
    result = RUN(app, ["router", "--port", "0", "--metrics-port", "0", "--router-directory", str(router.directory)])
    assert result.exit_code == 1 and "another router" in result.stderr


def test_the_commands_change_and_show_a_running_router(replicas: Replicas, tmp_path: Path) -> None:
    with Router(tmp_path, replicas.options[:1]) as router:
        where = ["--router-directory", str(router.directory)]
        assert "added r-1=" in RUN(app, ["router", "add", replicas.options[1], *where]).stdout
        router.wait_for("r-1", "UP")
        shown = RUN(app, ["router", "list", *where]).stdout
        assert "r-0" in shown and "r-1" in shown and " up " in shown
        assert RUN(app, ["router", "drain", "r-1", *where]).stdout == "r-1 is idle\n"
        assert RUN(app, ["router", "remove", "r-1", *where]).stdout == "removed r-1\n"
        assert json.loads((router.directory / "settings.json").read_text())["replica"] == [
            f"{Replica.parse(replicas.options[0])}"
        ]
    result = RUN(app, ["router", "list", *where])
    assert result.exit_code == 1 and "no router answers" in result.stderr


@pytest.mark.parametrize("options", [{}, {"follow_dns": True}, {"host": "::1", "load_factor": 125}], ids=["plain", "dns", "v6"])
def test_haproxy_takes_what_is_rendered(tmp_path: Path, options: dict[str, Any]) -> None:
    haproxy = needs_haproxy()
    replica = ("a=http://10.0.0.1:9997", "b=https://[::1]:443", "c=https://localhost", "d=http://localhost:1")
    trustme.CA().cert_pem.write_to_path(str(ca := tmp_path / "ca.pem"))
    text = render(RouterSettings(replica=replica, replica_ca_file=ca, **options), tmp_path)
    (tmp_path / "haproxy.cfg").write_text(text)
    result = subprocess.run([str(haproxy), "-c", "-f", str(tmp_path / "haproxy.cfg")], capture_output=True, text=True)
    assert result.returncode == 0 and "[WARNING]" not in result.stderr, result.stderr
