"""The docs in a real browser, with the policy that the server gives them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect
from starlette.applications import Starlette

from internvideo_client.page import page_routes
from tests.test_docs_site import site

pytestmark = pytest.mark.ci
__all__ = ["site"]


@pytest.fixture(scope="module")
def docs_url(site: Path) -> Iterator[str]:
    """The page's routes with the docs, at a port."""
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=page_routes(docs=site)), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/docs/"
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def reader(browser: Browser) -> Iterator[Page]:
    """A page whose console must stay empty (what the policy forbids is told there), and which asks this host alone."""
    context = browser.new_context()
    page, faults = context.new_page(), []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if "//127.0.0.1:" not in request.url else None)
    yield page
    context.close()
    assert faults == []


def test_the_docs_are_read_searched_and_coloured(reader: Page, docs_url: str) -> None:
    reader.goto(docs_url)
    expect(reader.locator("article img").first).to_be_visible()
    reader.get_by_role("link", name="The API").first.click()
    expect(reader.locator("h1")).to_contain_text("The API")
    reader.fill("input[name=q]", "Landlock")
    reader.press("input[name=q]", "Enter")
    expect(reader.locator("#search-results a").first).to_be_visible()
    reader.locator(".theme-toggle:visible").first.click()
    chosen = reader.evaluate("document.body.dataset.theme")
    reader.goto(docs_url)
    assert reader.evaluate("document.body.dataset.theme") == chosen != "auto"


def test_a_page_made_of_a_file_of_the_project_leads_on(reader: Page, docs_url: str) -> None:
    reader.goto(docs_url + "generated/contributing.html")
    reader.locator("article").get_by_role("link", name="architecture").first.click()
    expect(reader.locator("h1")).to_contain_text("Architecture")
