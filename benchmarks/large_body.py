"""What a large body costs the others: ``python -m benchmarks.large_body``. The server, the sender and who measures are processes
of their own.
"""

from __future__ import annotations

import base64
import http.client
import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from benchmarks.report import ROOT, surroundings, write
from internvideo_server.launch import start
from internvideo_server.settings import ServeSettings

PATH = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
TIMEOUT_S = 300.0
_PIECE = 3 << 18  # bytes of a video, whose base64 joins without padding


@dataclass
class Figures:
    """Seconds.

    Attributes:
        health: Each answer of ``/health/live`` while the body came and was answered.
        gaps: Between two events of a stream, meanwhile.
        whole: From the first byte of the body to its answer.
        status: Of that answer.
    """

    health: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    whole: float = 0.0
    status: int = 0


def measure(url: str, video: Path, megabytes: int, question: str) -> Figures:
    """Send a body of so many MB in a process of its own, beside a stream.

    Args:
        url: Of the server.
        video: A small MP4, made larger by a box that players skip.
        megabytes: Of the body, a million bytes each.
        question: Whose answer goes on for long.
    """
    figures = Figures()
    stop = threading.Event()
    reader = threading.Thread(target=_read_streams, args=(url, question, figures.gaps, stop))
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    sender = context.Process(target=_send, args=(url, video, megabytes, sending))
    reader.start()
    try:
        while not figures.gaps:  # the stream has begun
            if not reader.is_alive():
                raise RuntimeError("the stream ended before anything was measured")
            time.sleep(0.01)
        sender.start()
        receiving.recv()  # the process is there
        figures.gaps.clear()
        connection = _connect(url)
        while not receiving.poll(0.005):
            began = time.perf_counter()
            connection.request("GET", "/health/live")
            connection.getresponse().read()
            figures.health.append(time.perf_counter() - began)
        connection.close()
        figures.status, figures.whole = receiving.recv()
    finally:
        stop.set()
        reader.join()
        sender.join()
    return figures


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)


def _send(url: str, video: Path, megabytes: int, pipe: Any) -> None:
    """In a process of its own: the body, its status, its time."""
    mark = "{}"
    url_of = {"url": f"data:video/mp4;base64,{mark}", "num_frames": 4}
    content = [{"type": "video_url", "video_url": url_of}, {"type": "text", "text": "What moves?"}]
    question = {"model": "InternVideo2_5", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    head, tail = json.dumps(question).encode().split(b'{}"', 1)
    whole = video.read_bytes()
    padding = (megabytes * 1_000_000 - len(head) - len(tail)) // 4 * 3 - len(whole)
    pieces = [whole + padding.to_bytes(4, "big") + b"free", *[bytes(_PIECE)] * (padding // _PIECE)]
    pieces[0] += bytes(-len(pieces[0]) % 3)
    size = sum((len(piece) + 2) // 3 * 4 for piece in pieces)

    def body() -> Iterator[bytes]:
        yield head
        yield from map(base64.b64encode, pieces)
        yield b'"' + tail

    connection = _connect(url)
    pipe.send("ready")
    began = time.perf_counter()
    connection.request("POST", PATH, body(), {**JSON, "Content-Length": str(len(head) + size + 1 + len(tail))})
    answer = connection.getresponse()
    answer.read()
    pipe.send((answer.status, time.perf_counter() - began))


def _read_streams(url: str, question: str, gaps: list[float], stop: threading.Event) -> None:
    """Streams, one after another, and the time between two events of one of them."""
    request = {"model": "InternVideo2_5", "messages": [{"role": "user", "content": question}], "stream": True}
    while not stop.is_set():
        connection = _connect(url)
        connection.request("POST", PATH, json.dumps(request), JSON)
        answer = connection.getresponse()
        last: float | None = None
        while not stop.is_set() and (line := answer.readline()):
            if line.startswith(b"data:"):
                now = time.perf_counter()
                if last is not None:
                    gaps.append(now - last)
                last = now
        connection.close()


def main(
    megabytes: Annotated[list[int], typer.Option(help="of a body; repeatable")] = [100, 250],  # noqa: B006 - typer reads it once
    rounds: Annotated[int, typer.Option(help="the best of so many is told: others use this machine, too")] = 5,
    output: Annotated[str, typer.Option(help="name of the results")] = "large_body",
) -> None:
    """Measure, and write the results."""
    machine, rows = surroundings("uvicorn", "uvloop", "grpcio"), []
    ports: dict[str, Any] = dict.fromkeys(("port", "triton_grpc_port", "triton_metrics_port"), 0)
    with start(ServeSettings(device="cpu", **ports)) as server:
        for size in megabytes:
            runs = [
                measure(server.adapter_url, ROOT / "examples" / "demo.mp4", size, f"Write the numbers from 1 on. Round {i}.")
                for i in range(rounds)
            ]
            rows.append(
                {
                    "body, MB": size,
                    "answered with": sorted({run.status for run in runs}),
                    "whole, s": min(run.whole for run in runs),
                    "/health/live median, ms": 1e3 * min(sorted(run.health)[len(run.health) // 2] for run in runs),
                    "/health/live longest, ms": 1e3 * min(max(run.health) for run in runs),
                    "longest gap in a stream, ms": 1e3 * min(max(run.gaps) for run in runs),
                }
            )
    notes = f"Best of {rounds}. Targets: /health/live under 50 ms, no gap over 150 ms."
    for file in write(output, machine, rows, notes):
        typer.echo(file)


if __name__ == "__main__":
    typer.run(main)
