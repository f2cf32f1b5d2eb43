"""What a word of a streamed answer costs the page, in a real Chromium: ``python -m benchmarks.page``.

A stand-in for the API serves the page itself and streams ``--words`` words at a steady pace. The conversation before it has
``--turns`` turns. `tasks`: the time that the page's main thread was busy (CDP, TaskDuration), a word; `CPU`: of the renderer's
process, all its threads, a word. The same time of a page that shows nothing new is taken off.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
import uvicorn
from playwright.sync_api import CDPSession, Page, sync_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from benchmarks.report import surroundings, table, write
from internvideo_client.page import page_routes

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
_WORDS_A_TURN = 60


def stand_in(words: int, interval_s: float) -> Starlette:
    """The page, and an API that knows one answer."""

    async def events() -> AsyncIterator[str]:
        due = time.monotonic()
        for number in range(words):
            due += interval_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            yield _event({"content": f"word{number} "}, None)
        yield _event({}, "stop")
        yield "data: [DONE]\n\n"

    async def chat(request: Request) -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    async def models(request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": "stand-in"}]})

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models)]
    return Starlette(routes=[*routes, *page_routes()])


def _event(delta: dict[str, str], finish: str | None) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n"


@contextmanager
def served(app: Starlette) -> Iterator[str]:
    """An app on a port of its own."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server._serve([listening])))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


class Meter:
    """Seconds that a page has used."""

    def __init__(self, page: Page) -> None:
        browser = page.context.browser
        assert browser is not None
        self._page: CDPSession = page.context.new_cdp_session(page)
        self._page.send("Performance.enable")
        self._browser = browser.new_browser_cdp_session()

    def read(self) -> tuple[float, dict[int, float]]:
        """Busy time of the main thread, and CPU time of each renderer: which one is the page's is not told."""
        metrics = {each["name"]: each["value"] for each in self._page.send("Performance.getMetrics")["metrics"]}
        processes = self._browser.send("SystemInfo.getProcessInfo")["processInfo"]
        return metrics["TaskDuration"], {each["id"]: each["cpuTime"] for each in processes if each["type"] == "renderer"}

    def during(self, work: Callable[[], None]) -> tuple[float, float]:
        """What both grow by, that of all renderers together."""
        began, before = self.read()
        work()
        ended, after = self.read()
        return ended - began, sum(spent - before.get(renderer, 0) for renderer, spent in after.items())


def history(turns: int) -> str:
    """What the page keeps in the browser, as after so many questions."""
    answer = " ".join(f"said{number}" for number in range(_WORDS_A_TURN))
    turn: dict[str, Any] = {"media": [], "answer": answer, "usage": None, "ended": "stop", "error": None}
    return json.dumps([{**turn, "question": f"Question {number}?"} for number in range(turns)])


def measured(page: Page, url: str, turns: int, words: int, interval_s: float) -> tuple[float, float]:
    """Milliseconds of main thread and of CPU that one word costs."""
    page.goto(f"{url}/page/")
    page.evaluate("(kept) => localStorage.setItem('internvideo.conversation', kept)", history(turns))
    page.reload()
    page.wait_for_function("(turns) => document.querySelectorAll('.turn').length === turns", arg=turns)
    meter, length = Meter(page), words * interval_s
    page.wait_for_timeout(1000)

    def ask() -> None:
        page.fill("#question", "Tell me much.")
        page.press("#question", "Enter")
        page.wait_for_timeout(1000 * length)
        page.wait_for_selector("#send", state="visible")

    idle = meter.during(lambda: page.wait_for_timeout(1000 * length))
    used = meter.during(ask)
    page.evaluate("localStorage.clear()")
    main, process = (1000 * (each - rest) / words for each, rest in zip(used, idle, strict=True))
    return main, process


def main(
    turns: Annotated[str, typer.Option(help="lengths of the conversation before, a list")] = "0,50,200",
    words: Annotated[int, typer.Option(help="of the answer that is measured")] = 400,
    rates: Annotated[str, typer.Option(help="words a second, a list")] = "20,50,100",
    repeats: Annotated[int, typer.Option(help="of each; the median counts")] = 3,
    save: Annotated[bool, typer.Option("--save", help="write benchmarks/results/page.*")] = False,
) -> None:
    """Measure."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("error: needs Chromium: apt-get install chromium")
    rows: list[dict[str, Any]] = []
    machine = surroundings("playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        machine["packages"]["Chromium"] = browser.version
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        for rate in map(int, rates.split(",")):
            with served(stand_in(words, 1 / rate)) as url:
                for count in map(int, turns.split(",")):
                    pairs = [measured(page, url, count, words, 1 / rate) for _ in range(repeats)]
                    main_ms, cpu_ms = (statistics.median(values) for values in zip(*pairs, strict=True))
                    rows.append({"turns before": count, "words/s": rate, "tasks a word, ms": main_ms, "CPU a word, ms": cpu_ms})
        browser.close()
    typer.echo("\n".join(table(rows)))
    if save:
        notes = f"{words} words an answer, {_WORDS_A_TURN} in each answer before; medians of {repeats}."
        write("page", machine, rows, notes)


if __name__ == "__main__":
    typer.run(main)
