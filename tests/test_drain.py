"""Stopping without loss: what is under way ends by itself, or is told; nothing new is taken."""

from __future__ import annotations

import json
import os
import pty
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from internvideo_server.settings import ServeSettings
from tests.asking import body, client, text_part, until
from tests.launch_lab import Lab
from tests.launch_runs import Serving

pytestmark = pytest.mark.server


class Stream:
    """A streamed answer, read by a thread."""

    def __init__(self, url: str, tokens: int) -> None:
        self.events: list[str] = []
        self._url, self._tokens = url, tokens
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        until(lambda: len(self.events) > 3, "no token came")

    def _read(self) -> None:
        request = body(text_part("Tell me a story."), max_tokens=self._tokens, min_tokens=self._tokens, stream=True)
        with client(self._url) as http, http.stream("POST", "/v1/chat/completions", json=request) as stream:
            self.events.extend(line[6:] for line in stream.iter_lines() if line.startswith("data: "))

    def _last(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.events[-2])
        return document

    def result(self) -> dict[str, Any]:
        """The last event before ``[DONE]``."""
        self.thread.join(60)
        assert self.events[-1] == "[DONE]"
        return self._last()


class Terminal:
    """One that is not controlling anybody yet."""

    def __init__(self) -> None:
        self._other_end, self._end = pty.openpty()
        #: A line of shell: the first terminal that a session's leader opens becomes its controlling one.
        self.take = f"exec < {os.ttyname(self._end)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        os.close(self._end)

    def close(self) -> None:
        """The kernel tells whom it controls, by SIGHUP."""
        if self._other_end >= 0:
            os.close(self._other_end)
            self._other_end = -1


@contextmanager
def served(checkpoint: Path, folder: Path, **options: Any) -> Iterator[Serving]:
    """`serve` with the tiny model in a process of its own."""
    runs = folder / "runs"
    runs.mkdir()
    lab = Lab(folder / "lab")
    lab.checkpoint, lab.engine = checkpoint, None  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(runs))
        serving = Serving(lab, **options)
    try:
        serving.wait_for("OpenAI API")
        yield serving
    finally:
        if serving.process.poll() is None:
            os.kill(serving.process.pid, signal.SIGKILL)
            serving.finish()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with Terminal() as terminal:
        yield terminal


@pytest.fixture
def serving(checkpoint: Path, tmp_path: Path, terminal: Terminal, request: pytest.FixtureRequest) -> Iterator[Serving]:
    """Under a terminal; its drain timeout is the test's parameter."""
    with served(checkpoint, tmp_path, shell=terminal.take, drain_timeout=request.param) as serving:
        yield serving


def adapter_url(serving: Serving) -> str:
    return serving.line.split()[-1].removesuffix("/v1")


@pytest.mark.parametrize("serving", [60.0], indirect=True)
def test_what_is_under_way_ends_by_itself_and_nothing_new_is_taken(serving: Serving) -> None:
    url = adapter_url(serving)
    stream = Stream(url, 600)
    os.kill(serving.process.pid, signal.SIGTERM)
    with client(url) as http:
        until(lambda: http.get("/health/ready").status_code == 503, "it was still ready", 5)
        assert http.get("/health/live").status_code == 200
        refused = http.post("/v1/chat/completions", json=body(text_part("hi"), max_tokens=1))
    assert (refused.status_code, refused.headers["Retry-After"], refused.headers["Connection"]) == (503, "1", "close")
    assert stream.result()["choices"][0]["finish_reason"] in ("length", "stop")
    assert serving.finish() == (0, "")


@pytest.mark.parametrize("serving", [0.5], indirect=True)
def test_what_does_not_end_in_time_is_told(serving: Serving) -> None:
    stream = Stream(adapter_url(serving), 6000)
    os.kill(serving.process.pid, signal.SIGTERM)
    last = stream.result()
    assert last.get("error", last).get("code") == "unavailable", (len(stream.events), last)
    assert serving.finish() == (0, "")


@pytest.mark.parametrize("serving", [600.0], indirect=True)
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_at_once(serving: Serving, first: int) -> None:
    stream = Stream(adapter_url(serving), 6000)
    os.kill(serving.process.pid, first)
    with client(adapter_url(serving)) as http:
        until(lambda: http.get("/health/ready").status_code == 503, "it was still ready", 5)
    os.kill(serving.process.pid, signal.SIGTERM)
    assert stream.result()["error"]["code"] == "unavailable"
    assert serving.finish() == (0, "")


@pytest.mark.parametrize("serving", [30.0], indirect=True)
def test_a_closed_terminal_ends_it_and_is_no_fault(serving: Serving, terminal: Terminal) -> None:
    assert serving.process.stdout is not None
    serving.process.stdout.close()
    terminal.close()
    assert serving.process.wait(60) == 0


def test_a_hangup_without_a_terminal_has_keys_read_again(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    with served(checkpoint, tmp_path, api_key_file=file) as serving, client(adapter_url(serving)) as http:

        def status(key: str) -> int:
            return http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

        assert (status("old"), status("new")) == (200, 401)
        file.write_text("new\n")
        os.kill(serving.process.pid, signal.SIGHUP)
        until(lambda: status("new") == 200, "the new key is not known")
        assert status("old") == 401
        assert serving.end(signal.SIGTERM) == (0, "")


def test_a_connection_is_kept_longer_than_proxies_keep_it() -> None:
    assert ServeSettings().keep_alive_timeout >= 75
