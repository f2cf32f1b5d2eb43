"""What one client's media cost the others, against the real server."""

from __future__ import annotations

import select
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from internvideo_server.launch import RunningServer
from tests.asking import answer, body, client, text_part, until, video_part
from tests.bombs import bomb
from tests.test_leaving import asking, decoders

pytestmark = pytest.mark.server
PATH = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def all_decoders(server: RunningServer) -> Iterator[None]:
    """Every decoder is there, before and after: those of clients that left are ended."""
    until(lambda: bool(decoders(server)), "there is no decoder")
    number = len(decoders(server))
    yield
    until(lambda: len(decoders(server)) >= number, "the decoders did not come back")


@pytest.fixture(scope="module")
def bombs(media_dir: Path) -> dict[int, Path]:
    """Packets -> a video of so many, in a folder that the server may read."""
    return {packets: bomb(media_dir / f"bomb_{packets}.webm", packets) for packets in (15_000, 3_000)}


def test_nobody_waits_behind_bombs(server: RunningServer, media_dir: Path, bombs: dict[int, Path]) -> None:
    """Four clients with a minute of decoding each, and others with a text and with a second question about a known video."""
    known = video_part(media_dir / "v1.mp4", num_frames=4)
    with client(server.adapter_url) as http, ExitStack() as clients:
        answer(http, known, max_tokens=1)
        waiting = [
            clients.enter_context(asking(server, body(video_part(bombs[3_000], start=1.0 + i)))) for i in range(4)
        ]  # each of other frames: no work is shared
        until(lambda: any(process.cpu_times().user > 0.5 for process in decoders(server).values()), "no bomb is decoded")
        assert isinstance(answer(http, text_part("hi"), max_tokens=2), str)
        assert isinstance(answer(http, known, text_part("And what else?"), max_tokens=2), str)
        assert select.select(waiting, [], [], 0)[0] == []  # none of the four is through


def test_a_bomb_is_refused_with_its_cost(server: RunningServer, bombs: dict[int, Path]) -> None:
    with client(server.adapter_url) as http:
        for _ in range(4):
            refused = http.post("/v1/chat/completions", json=body(video_part(bombs[15_000])))
            assert refused.status_code == 400
            assert "gigapixels" in refused.json()["error"]["message"]


def test_four_of_the_review_stop_nobody(server: RunningServer, shared_dir: Path, media_dir: Path) -> None:
    """They took everybody's 300 s. A second question about a known video is answered beside them, too."""
    file = media_dir / "review.webm"
    shutil.copy(shared_dir / "cases" / "hostile" / "vp9_4096_15k.webm", file)
    known = video_part(media_dir / "v2.mp4", num_frames=4)
    with client(server.adapter_url) as http, ThreadPoolExecutor(4) as others:
        answer(http, known, max_tokens=1)
        requests = [body(video_part(file, num_frames=80, start=0.1 * i)) for i in range(4)]
        asked = [others.submit(httpx2.post, server.adapter_url + PATH, json=r, timeout=120, trust_env=False) for r in requests]
        assert isinstance(answer(http, text_part("hi"), max_tokens=2), str)
        assert isinstance(answer(http, known, text_part("And now?"), max_tokens=2), str)
        for each in asked:
            refused = each.result()
            assert refused.status_code == 400
            assert "gigapixels" in refused.json()["error"]["message"]


def test_text_and_known_media_are_answered_while_every_decoder_stands_still(server: RunningServer, media_dir: Path) -> None:
    known = video_part(media_dir / "v2.mp4", num_frames=4)
    with client(server.adapter_url) as http, ExitStack() as clients:
        answer(http, known, max_tokens=1)
        stopped = decoders(server)
        assert stopped
        for process in stopped.values():
            process.send_signal(signal.SIGSTOP)
        try:
            for i in range(8 * len(stopped)):
                clients.enter_context(asking(server, body(video_part(media_dir / "v1.mp4", start=0.31 + 0.01 * i))))
            assert isinstance(answer(http, text_part("hi"), max_tokens=2), str)
            assert isinstance(answer(http, known, text_part("And now?"), max_tokens=2), str)
        finally:
            for process in stopped.values():
                if process.is_running():
                    process.send_signal(signal.SIGCONT)
