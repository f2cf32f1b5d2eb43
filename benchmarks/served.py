"""The project's own server, or several behind the router, for as long as it is measured."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import typer

from internvideo_server.launch import RunningServer, resolve_ports, start
from internvideo_server.settings import RouterSettings, ServeSettings, arguments_of

FREE_PORTS: dict[str, Any] = dict.fromkeys(("port", "triton_grpc_port", "triton_metrics_port"), 0)
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Served:
    """Where to ask, what it took to get there, and whose memory counts."""

    url: str
    start_s: float
    processes: Callable[[], list[int]]


@contextmanager
def served(options: ServeSettings, replicas: int = 1) -> Iterator[Served]:
    """Start one server, or ``replicas`` of them, each on a GPU of its own where there are GPUs, behind the router."""
    began = time.perf_counter()

    def report(line: str) -> None:
        typer.echo(f"{time.perf_counter() - began:6.1f} s  {line}", err=True)

    with ExitStack() as stack:
        servers: list[RunningServer] = []
        for number in range(replicas):
            device = options.device if options.device == "cpu" or replicas == 1 else f"cuda:{number}"
            own = {"device": device, "replica_name": f"r{number}"} if replicas > 1 else {}
            servers.append(stack.enter_context(start(options.model_copy(update={**FREE_PORTS, **own}), report=report)))
        url = servers[0].openai_url
        if replicas > 1:
            url = stack.enter_context(_router([f"r{number}={server.adapter_url}" for number, server in enumerate(servers)]))
        yield Served(url, time.perf_counter() - began, lambda: [pid for server in servers for pid in server.processes()])


@contextmanager
def _router(replicas: list[str]) -> Iterator[str]:
    """``internvideo router`` in a process of its own; the URL of its API."""
    ports = resolve_ports({"port": ("127.0.0.1", 0), "metrics": ("127.0.0.1", 0)})
    with tempfile.TemporaryDirectory(prefix="router-") as folder:
        settings = RouterSettings(
            replica=tuple(replicas), router_directory=Path(folder) / "r", port=ports["port"], metrics_port=ports["metrics"]
        )
        command = [sys.executable, "-m", "internvideo_client.cli", "router", *arguments_of(settings)]
        with subprocess.Popen(command) as process:
            try:
                wait_for(f"http://127.0.0.1:{settings.metrics_port}/health/ready", process)
                yield f"http://127.0.0.1:{settings.port}/v1"
            finally:
                process.terminate()


def wait_for(url: str, process: subprocess.Popen[Any], patience_s: float = _PATIENCE_S) -> None:
    """Until a URL answers 200.

    Raises:
        RuntimeError: The process ended, or it takes too long.
    """
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(url, trust_env=False).status_code == httpx2.codes.OK:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer (exit code {process.poll()})")
