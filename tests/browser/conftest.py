"""A real Chromium in front of a real server with the demo model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from internvideo_client.adapter import create_app
from internvideo_server.launch import RunningServer, start
from internvideo_server.settings import AdapterSettings, ServeSettings
from tests.asking import FREE_PORTS
from tests.serving import served

# A browser of a closed machine must not look for its maker's hosts.
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_ARGUMENTS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def demo() -> Iterator[RunningServer]:
    with start(ServeSettings(device="cpu", num_frames=8, **FREE_PORTS)) as running:
        yield running


@pytest.fixture(scope="session")
def guarded(demo: RunningServer) -> Iterator[str]:
    """One more adapter before the same Triton, with an API key, behind what a proxy does that serves it below ``/video``.

    It keeps no files (Triton may read those of its own run alone), so the page sends videos as data: URLs.
    """
    settings = AdapterSettings(
        triton=demo.grpc_url,
        tokenizer=demo.engine / "tokenizer.json",
        api_key=(SecretStr("key-of-the-tests"),),
    )
    app = create_app(settings)

    async def below(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith("/video/"), scope["path"]
            path = scope["path"].removeprefix("/video")
            scope = {**scope, "path": path, "raw_path": scope["raw_path"].removeprefix(b"/video")}
        await app(scope, receive, send)

    with served(below) as base:
        yield f"{base}/video/"


@pytest.fixture(scope="module")  # no longer: while it lives an event loop runs in this thread, and asyncio.run refuses
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, demo: RunningServer) -> Iterator[Page]:
    """The page in a new profile; a fault of its scripts fails the test."""
    context = browser.new_context(locale="en-US", viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(demo.page_url)
    expect(page.locator("#model")).not_to_be_empty()
    yield page
    context.close()
    assert faults == []
