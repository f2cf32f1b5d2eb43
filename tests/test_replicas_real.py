"""`serve --replicas 2` as a person starts it: two complete servers with the real models on the CPU, one address."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from internvideo_server.launch import living_runs
from tests.asking import body, text_part, until, video_part
from tests.router_lab import CHAT, asking, needs_haproxy, replica_of

pytestmark = [pytest.mark.server, pytest.mark.ci]
VIDEOS = 12
KEY = {"Authorization": "Bearer secret"}


class Group:
    """The command, and what it has told."""

    def __init__(self, checkpoint: Path, media_dir: Path, folder: Path) -> None:
        options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--replicas", "2", "--port", "0", "--name", "two"]
        options += ["--allowed-local-media-path", str(media_dir), "--decode-workers", "1", "--api-key", "secret"]
        self.media, self._log = media_dir, folder / "log"
        with self._log.open("w") as log:
            command = [sys.executable, "-m", "internvideo_client.cli", "serve", *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "COLUMNS": "500"})
        until(lambda: "Ready." in self.words or self.process.poll() is not None, "it did not start", 300)
        assert self.process.poll() is None, self.words
        self.url = re.search(r"OpenAI API +(http://\S+)/v1", self.words)[1]  # type: ignore[index]

    @property
    def words(self) -> str:
        return self._log.read_text()


@pytest.fixture(scope="module")
def group(checkpoint: Path, media_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    needs_haproxy()
    group = Group(checkpoint, media_dir, tmp_path_factory.mktemp("group"))
    try:
        yield group
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            if group.process.poll() is None:
                group.process.send_signal(number)
        group.process.wait(120)


def tower_frames() -> float:
    pages = [httpx2.get(run.urls["metrics"], trust_env=False).text for run in living_runs() if run.name in ("two-0", "two-1")]
    lines = [line for page in pages for line in page.splitlines() if line.startswith("internvideo_vision_frames_total")]
    return sum(float(line.split()[-1]) for line in lines)


def test_a_video_s_questions_go_to_one_of_them_and_videos_are_spread(group: Group) -> None:
    seen = set()
    with asking(group.url, headers=KEY) as http:
        for number in range(VIDEOS):
            shutil.copy(group.media / f"v{number % 8}.mp4", file := group.media / f"of_two_{number}.mp4")
            video = video_part(file, num_frames=8, start=0.1 * number)
            first, second = (
                replica_of(http.post(CHAT, json=body(video, text_part(f"Question {turn}?"), max_tokens=4))) for turn in range(2)
            )
            assert first == second
            seen.add(first)
    assert seen == {"replica-0", "replica-1"} and tower_frames() == VIDEOS * 8


def test_the_key_is_asked_for_behind_the_front_and_metrics_are_not_shown(group: Group) -> None:
    with asking(group.url) as http:
        assert [http.post(CHAT, json=body(text_part("Hello"))).status_code, http.get("/metrics").status_code] == [401, 404]
        assert http.get("/health/ready").status_code == 200


def test_a_signal_lets_a_stream_end_and_then_everything_is_gone(group: Group) -> None:
    """The last one: it ends the group."""
    events: list[str] = []

    def read() -> None:
        video = video_part(group.media / "v1.mp4", num_frames=8)
        question = body(video, text_part("Story?"), max_tokens=150, min_tokens=150, stream=True)
        with asking(group.url, headers=KEY) as http, http.stream("POST", CHAT, json=question) as stream:
            events.extend(line for line in stream.iter_lines() if line)

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: len(events) > 3 or not reader.is_alive(), "no token came")
    group.process.send_signal(signal.SIGTERM)
    until(lambda: "stopping: requests under way" in group.words, "the signal was not seen")
    reader.join(60)
    assert events[-1] == "data: [DONE]"
    assert group.process.wait(120) == 0
    assert not [run for run in living_runs() if run.name.startswith("two")]
