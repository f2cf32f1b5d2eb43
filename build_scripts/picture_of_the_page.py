"""README's picture of the page: a real server, a real browser, a real answer. ``python -m build_scripts.picture_of_the_page``."""

from __future__ import annotations

import shutil
from pathlib import Path

from internvideo_server.launch import start
from internvideo_server.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = ("Describe the video.", "Which shape is green?")


def main() -> None:
    """Take it."""
    from playwright.sync_api import expect, sync_playwright

    settings = ServeSettings(device="cpu", num_frames=16, port=0, triton_grpc_port=0, triton_metrics_port=0)
    with start(settings) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(locale="en-US", viewport={"width": 1120, "height": 680}, device_scale_factor=1.5)
        page = context.new_page()
        page.goto(server.page_url)
        page.set_input_files("#file", ROOT / "examples" / "demo.mp4")
        expect(page.locator("#strip button")).to_have_count(16)
        for question in QUESTIONS:
            page.fill("#question", question)
            page.press("#question", "Enter")
            expect(page.locator("#send")).to_be_visible(timeout=120_000)
        page.locator("#strip button").nth(9).click()  # a frame in which both shapes are to be seen
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)  # until the player shows it
        page.screenshot(path=ROOT / "docs" / "pictures" / "page.png")
        browser.close()


if __name__ == "__main__":
    main()
