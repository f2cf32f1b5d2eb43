"""The project's own server, or several behind the router, for as long as it is measured."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import typer

from internvideo_server.launch import start, statuses
from internvideo_server.settings import ServeSettings, arguments_of

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
    """Start one server, or with ``replicas`` so many of them behind the router, as ``internvideo serve`` does."""
    began = time.perf_counter()

    def report(line: str) -> None:
        typer.echo(f"{time.perf_counter() - began:6.1f} s  {line}", err=True)

    if replicas > 1:
        with _several(options, replicas) as (url, processes):
            yield Served(url, time.perf_counter() - began, lambda: processes)
    else:
        with start(options.model_copy(update=FREE_PORTS), report=report) as server:
            yield Served(server.openai_url, time.perf_counter() - began, server.processes)


@contextmanager
def _several(options: ServeSettings, replicas: int) -> Iterator[tuple[str, list[int]]]:
    """URL and processes of ``serve --replicas``, in a process of its own."""
    name = f"benchmark-{os.getpid()}"
    settings = options.model_copy(update={**FREE_PORTS, "replicas": str(replicas), "name": name})
    command = [sys.executable, "-m", "internvideo_client.cli", "serve", *arguments_of(settings)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            while not (front := [run for run in statuses() if run.record.name == name and run.status == "serving"]):
                if process.poll() is not None:
                    raise RuntimeError(f"{shlex.join(command)} ended with exit code {process.returncode}")
                time.sleep(0.1)
            record = front[0].record
            runs = [run for run in statuses() if record.run_id in (run.record.run_id, run.record.group)]
            yield record.urls["openai"], [pid for run in runs for pid in (run.record.pid, *run.processes)]
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
