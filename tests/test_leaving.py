"""A client that goes away ends the work of its request in every stage."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from internvideo_server.launch import RunningServer
from tests.asking import MOST_SECONDS, answer, body, client, text_part, until, video_part

pytestmark = pytest.mark.server


@contextmanager
def asking(server: RunningServer, request: dict[str, Any]) -> Iterator[socket.socket]:
    """A request under way; leaving the block closes its connection, as a client that goes away does."""
    url = urlsplit(server.adapter_url)
    content = json.dumps(request).encode()
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    )
    head = "\r\n".join(lines) + "\r\n\r\n"
    with socket.create_connection((url.hostname, url.port), timeout=MOST_SECONDS) as connection:
        connection.sendall(head.encode() + content)
        yield connection


def metric(server: RunningServer, name: str, **labels: str) -> float:
    """A figure of Triton's metrics page."""
    families = text_string_to_metric_families(httpx2.get(server.metrics_url, trust_env=False).text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def work_seconds(server: RunningServer, model: str) -> float:
    """Seconds that the model's workers were at work on requests that have ended."""
    return metric(server, "internvideo_work_seconds_total", model=model)


def active(server: RunningServer) -> float:
    """Requests in the engine's batch."""
    return metric(server, "nv_trt_llm_request_metrics", request_type="active")


def decoders(server: RunningServer) -> dict[int, psutil.Process]:
    """The decoder processes of this server, by id: children of the fork server, which its preprocessing model's stub started."""
    found = {}
    for process in psutil.process_iter():
        try:
            fork_server, stub, *_ = process.parents()
            if "internvideo_server.preprocessing.video._fork_server" in fork_server.cmdline() and str(server.repository) in str(
                stub.cmdline()
            ):
                found[process.pid] = process
        except (psutil.NoSuchProcess, ValueError):
            continue
    return found


def test_leaving_while_the_video_is_decoded_ends_the_decoder(server: RunningServer, media_dir: Path) -> None:
    before = decoders(server)
    assert before
    for process in before.values():
        process.send_signal(signal.SIGSTOP)  # decoding now takes for ever
    try:
        worked = work_seconds(server, "preprocessing")
        with asking(server, body(video_part(media_dir / "v0.mp4", start=0.9))) as connection:  # not decoded before
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        until(lambda: work_seconds(server, "preprocessing") > worked, "the request was not ended")
        until(lambda: len(decoders(server).keys() - before.keys()) == 1, "its decoder was not replaced")
    finally:
        for process in before.values():
            if process.is_running():
                process.send_signal(signal.SIGCONT)
    with client(server.adapter_url) as http:
        assert answer(http, video_part(media_dir / "v0.mp4", num_frames=4), max_tokens=2)


def test_leaving_while_the_tower_runs_cuts_its_work(server: RunningServer, media_dir: Path) -> None:
    long_video = video_part(media_dir / "v7.mp4", num_frames=128)
    before = work_seconds(server, "vit")
    with client(server.adapter_url) as http:
        answer(http, long_video, max_tokens=1)
        whole = work_seconds(server, "vit") - before
    for attempt in range(1, 6):
        before, prepared = work_seconds(server, "vit"), work_seconds(server, "preprocessing")
        long_video = video_part(media_dir / "v7.mp4", num_frames=128, start=0.1 * attempt)  # other frames: no cache has them
        with asking(server, body(long_video)):
            until(lambda: work_seconds(server, "preprocessing") > prepared, "the tower's turn did not come")  # noqa: B023
        with contextlib.suppress(AssertionError):  # one that leaves between the two models never comes to the tower
            until(lambda: work_seconds(server, "vit") > before, "the request was not ended", seconds=2 * whole)  # noqa: B023
            break
    assert 0 < work_seconds(server, "vit") - before < whole / 2


@pytest.fixture(scope="module")
def endless(server: RunningServer) -> str:
    """A question whose answer goes in circles to the end of the context; most answers of the random model end by themselves."""
    with client(server.adapter_url) as http:
        for number in range(100):
            question = f"Tell me story number {number}."
            answer = http.post("/v1/chat/completions", json=body(text_part(question), max_tokens=1500)).json()
            if answer["choices"][0]["finish_reason"] == "length":
                return question
    raise AssertionError("every answer ends by itself")


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_while_tokens_come_makes_room_in_the_batch(server: RunningServer, endless: str, stream: bool) -> None:
    until(lambda: active(server) == 0, "the engine was not idle")
    with ExitStack() as connections:
        for _ in range(3):
            request = {**body(text_part(endless), stream=stream), "max_tokens": None}
            connections.enter_context(asking(server, request))
        until(lambda: active(server) == 3, "the requests did not reach the engine")
    until(lambda: active(server) == 0, "the requests were not ended", seconds=15)
