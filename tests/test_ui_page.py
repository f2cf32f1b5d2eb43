"""The page as people have it: started with the server and the demo model, asked through its own HTTP interface."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gradio_client import Client, handle_file

from internvideo_server.launch import RunningServer, ServeOptions, start
from tests.asking import FREE_PORTS, client, difference, figures, until
from tests.conftest import ROOT

pytestmark = pytest.mark.server

DEMO = ROOT / "examples" / "demo.mp4"


@pytest.fixture(scope="module")
def demo() -> Iterator[RunningServer]:
    with start(ServeOptions(device="cpu", ui_port=0, **FREE_PORTS)) as running:
        yield running


@pytest.fixture
def page(demo: RunningServer) -> Client:
    assert demo.page_url
    return Client(demo.page_url, verbose=False, analytics_enabled=False)


def asked(question: str, *files: Path, num_frames: int = 8) -> tuple[Any, ...]:
    """What the page's /ask takes: the entry, and the options in their order."""
    return {"text": question, "files": [handle_file(str(path)) for path in files]}, num_frames, 0, 0, 64, 0


def said(chat: list[dict[str, Any]]) -> list[str]:
    """The texts of a chat, and the titles of what stands folded."""
    return [(message["metadata"] or {}).get("title") or message["content"][-1]["text"] for message in chat]


def test_a_dropped_video_is_answered_and_the_second_turn_decodes_nothing(demo: RunningServer, page: Client) -> None:
    job = page.submit(*asked("Which way does the green triangle move?", DEMO), api_name="/ask")
    question, answer, timings = said(job.result(120)[1])
    assert (question, answer) == ("Which way does the green triangle move?", "It moves up.")
    assert timings.endswith("0 of 8 frames from the cache")
    assert len({tuple(said(chat)) for _, chat in job.outputs()}) > 3  # it was shown as it came
    before = figures(demo)
    chat = page.predict(*asked("What colour is the star?"), api_name="/ask")[1]
    assert said(chat)[:3] == [question, answer, timings]
    assert said(chat)[4] == "It is yellow."
    assert said(chat)[5].endswith("8 of 8 frames from the cache")
    assert difference(demo, before, "frames_decoded_total") == 0
    assert difference(demo, before, "vision_frames_total") == 0


def test_stopping_ends_the_request_and_gives_the_question_back(demo: RunningServer, page: Client) -> None:
    def lost() -> float:
        with client(demo.adapter_url) as http:
            lines = [line for line in http.get("/metrics").text.splitlines() if 'requests_total{status="499"}' in line]
        return sum(float(line.split()[-1]) for line in lines)

    before = lost()
    job = page.submit(*asked("Describe the video.", DEMO, num_frames=128), api_name="/ask")
    until(lambda: bool(job.outputs()), "nothing was shown")
    job.cancel()
    until(lambda: lost() == before + 1, "the request goes on")
    entry, chat = page.predict(api_name="/stop")
    assert (entry["value"]["text"], chat) == ("Describe the video.", [])
    assert [Path(file).name for file in entry["value"]["files"]] == [DEMO.name]


def test_no_file_of_the_server_can_be_had_through_the_page(demo: RunningServer) -> None:
    with httpx2.Client(base_url=f"{demo.page_url}/gradio_api", trust_env=False, timeout=60) as http:
        for path in (str(DEMO), str(ROOT / "README.md"), "/etc/passwd"):
            assert http.get(f"/file={path}").status_code == 403
            for more in ({}, {"is_stream": True}, {"url": f"{demo.page_url}/gradio_api/file={path}"}):
                forged = {
                    "path": path,
                    "orig_name": "a.mp4",
                    "mime_type": "video/mp4",
                    "meta": {"_type": "gradio.FileData"},
                    **more,
                }
                typed = {"text": "Describe the video.", "files": [forged]}
                event = http.post("/call/ask", json={"data": [typed, None, 8, 0, 0, 64, 0]}).json()["event_id"]
                events = http.get(f"/call/ask/{event}").text
                assert events.startswith("event: error"), events
                assert json.loads(events.splitlines()[1].removeprefix("data: ")) == {"error": None}


def test_the_page_asks_nothing_of_other_hosts(demo: RunningServer) -> None:
    assert demo.page_url
    response = httpx2.get(demo.page_url, trust_env=False)
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    config = httpx2.get(f"{demo.page_url}/config", trust_env=False).json()
    assert config["analytics_enabled"] is False


def test_the_page_ends_with_the_server_and_leaves_no_upload(tmp_path: Path, demo: RunningServer) -> None:
    """Last: the server of this module is over then."""
    uploads = list(demo.logs["adapter"].parent.glob("internvideo-ui-*/**/demo.mp4"))
    assert uploads
    demo.stop()
    assert not any(path.exists() for path in uploads)
    with pytest.raises(httpx2.TransportError):
        httpx2.get(str(demo.page_url), trust_env=False)
