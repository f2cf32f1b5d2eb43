"""Watching: a conversation that gets a new clip each turn costs its new frames and nothing of the older ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest

from internvideo_server.launch import RunningServer, start
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS, MODEL, client, figures, text_part, until, video_part

pytestmark = [pytest.mark.server, pytest.mark.ci]
FRAMES, TURNS, TOKENS, PAGE = 16, 20, 12, 32


def clip(path: Path, seed: int) -> Path:
    noise = np.random.default_rng(seed)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(FRAMES):
            picture = noise.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [clip(folder / f"{number:02}.mp4", number) for number in range(TURNS)]


@pytest.fixture(scope="module")
def server(clips: list[Path]) -> Iterator[RunningServer]:
    options = {"device": "cpu", "allowed_local_media_path": (clips[0].parent,), "max_frames": TURNS * FRAMES}
    with start(ServeSettings(**options, **FREE_PORTS)) as running:
        yield running


class Watcher:
    """Asks about one clip after another, and counts what each turn took."""

    def __init__(self, server: RunningServer, http: httpx2.Client) -> None:
        self._server, self._http = server, http
        self.messages: list[dict[str, Any]] = []
        self._last = figures(server)

    def ask(self, video: Path) -> dict[str, Any]:
        content = [video_part(video, num_frames=FRAMES), text_part("What is shown?")]
        self.messages.append({"role": "user", "content": content})
        request = {"model": MODEL, "messages": self.messages, "max_tokens": TOKENS, "ignore_eos": True}
        response = self._http.post("/v1/chat/completions", json=request)
        assert response.status_code == 200, response.text
        answer = response.json()
        self.messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
        usage: dict[str, Any] = answer["usage"]
        return usage

    def took(self, tokens: int = 0) -> dict[str, float]:
        """Since the last look, once so many tokens are told (the engine does so every few milliseconds)."""
        names = ("frames_decoded_total", "vision_frames_total")
        engine = "internvideo_engine_tokens_total/tensorrt_llm/1"
        until(lambda: figures(self._server)[engine] - self._last[engine] >= tokens, "the tokens were not told")
        now = figures(self._server)
        difference = {name: now[f"internvideo_{name}"] - self._last[f"internvideo_{name}"] for name in names}
        difference["tokens"] = now[engine] - self._last[engine]
        self._last = now
        return difference


def test_twenty_turns_of_new_clips_cost_their_new_frames_and_tokens(server: RunningServer, clips: list[Path]) -> None:
    with client(server.adapter_url) as http:
        watcher = Watcher(server, http)
        prompt, tokens, new_tokens = 0, 0.0, 0
        for turn, video in enumerate(clips, 1):
            usage = watcher.ask(video)
            new = usage["prompt_tokens"] - prompt
            prompt = usage["prompt_tokens"]
            took = watcher.took(new)
            assert took["frames_decoded_total"] == took["vision_frames_total"] == FRAMES
            assert usage["internvideo"]["frames"] - usage["internvideo"]["cached_frames"] == FRAMES
            assert usage["internvideo"]["frames"] == turn * FRAMES
            new_tokens += new
            tokens += took["tokens"]
            # Besides a turn's own: its answer, and what began a page of the cache that was not full.
            assert tokens <= new_tokens + turn * (TOKENS + PAGE)
        assert prompt > TURNS * FRAMES * 16

        # The client lets the older half go: no frame is new work but the clip's, and the prompt is read once more.
        watcher.took()
        del watcher.messages[:TURNS]
        usage = watcher.ask(clips[0])
        took = watcher.took(usage["prompt_tokens"] - PAGE)
        assert took["frames_decoded_total"] == took["vision_frames_total"] == 0
        assert took["tokens"] <= usage["prompt_tokens"] + TOKENS
        usage = watcher.ask(clips[1])  # and from then on only what is new
        assert watcher.took(FRAMES * 16)["tokens"] <= usage["prompt_tokens"] / 4
