"""A real router (HAProxy) in a process of its own, in front of replicas that a test has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import pytest

from internvideo_server.launch import LaunchError, resolve_ports
from internvideo_server.launch.router import AdminSocket, Server, find_haproxy
from internvideo_server.settings import RouterSettings, arguments_of
from tests.asking import MODEL, until
from tests.fake_triton import FakeTriton, Step, piece, running

RING = "replicas"
CHAT = "/v1/chat/completions"
NAMES = ("r-0", "r-1", "r-2")


def needs_haproxy() -> Path:
    """HAProxy, or the test is skipped."""
    try:
        return find_haproxy()
    except LaunchError as error:
        pytest.skip(str(error))


class Router:
    """``internvideo router`` (context manager).

    Args:
        folder: Of its files.
        replicas: ``NAME=URL``, as of ``--replica``.
        options: Of `RouterSettings`.
    """

    def __init__(self, folder: Path, replicas: list[str], **options: Any) -> None:
        needs_haproxy()
        # A socket's path is short, pytest's folders are not.
        self._short = tempfile.TemporaryDirectory(prefix="router-")
        self.directory = Path(self._short.name) / "r"
        ports = resolve_ports({"port": ("127.0.0.1", 0), "metrics": ("127.0.0.1", 0)})
        options = {"port": ports["port"], "metrics_port": ports["metrics"], "check_interval": 0.3, **options}
        self.settings = RouterSettings(replica=tuple(replicas), router_directory=self.directory, **options)
        self.url = f"{'https' if self.settings.ssl_certfile else 'http'}://localhost:{self.settings.port}"
        self.own_url = f"http://localhost:{self.settings.metrics_port}"
        self.log = folder / f"router-{self.settings.port}.log"

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "internvideo_client.cli", "router", *arguments_of(self.settings)]
            # Without a terminal, whose end would be a SIGHUP too.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ, start_new_session=True)
        until(lambda: "metrics on port" in self.words or self.process.poll() is not None, "the router did not start")
        assert self.process.poll() is None, self.words
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.end(signal.SIGKILL if self.process.poll() is None and kind else signal.SIGTERM)
        self._short.cleanup()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal (twice: at once) and wait for the end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.send_signal(number)
        return self.process.wait(60)

    @property
    def words(self) -> str:
        """What it has written."""
        return self.log.read_text(errors="replace")

    def servers(self) -> dict[str, Server]:
        """Those of the ring."""
        return AdminSocket(self.directory).servers(RING)

    def wait_for(self, name: str, status: str) -> None:
        until(lambda: self.servers()[name].status.split()[0] == status, f"{name} did not become {status}")

    @property
    def haproxy(self) -> int:
        """HAProxy's process id."""
        information = AdminSocket(self.directory).ask("show info")
        return int(next(line for line in information.splitlines() if line.startswith("Pid:")).split()[1])


class Replicas:
    """Three adapters with files, each with a Triton that says Hello."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.fakes, self.urls = {}, {}
        for name in NAMES:
            own = folder / name
            own.mkdir()
            self.fakes[name] = FakeTriton()
            self.fakes[name].script = [Step([piece("Hello")])]
            self.urls[name] = stack.enter_context(
                running(self.fakes[name], own, state_directory=own / "state", replica_name=name, request_timeout=30)
            )

    @property
    def options(self) -> list[str]:
        return [f"{name}={url}" for name, url in self.urls.items()]


@contextmanager
def asking(url: str, **options: Any) -> Iterator[httpx2.Client]:
    # Certificates are read from disk for each client, unless none are wanted.
    with httpx2.Client(base_url=url, trust_env=False, timeout=60, **{"verify": False, **options}) as http:
        yield http


def request(*content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": list(content)}], "max_tokens": 1, **fields}


def video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def replica_of(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    name: str = answer.headers["x-internvideo-replica"]
    return name


def answers(url: str) -> bool:
    try:
        return bool(httpx2.get(url, trust_env=False).status_code)
    except httpx2.TransportError:
        return False
