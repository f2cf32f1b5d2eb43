"""The page as a process of its own, for a browser on the same machine."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._protocol import MAX_BODY_BYTES
from ._page import I18N, build_page

# All that the page needs comes from its own server. Gradio's scripts and styles are inline in part.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
        "object-src 'none'; frame-ancestors 'none'; base-uri 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# A video leaves room for the answer; the button for sharing would upload it to another host, which the policy refuses.
_CSS = "#chat video {max-height: 30vh; width: auto} #chat .download-link ~ button {display: none}"
_FONTS = ["system-ui", "sans-serif"]
_LARGEST_FILE = MAX_BODY_BYTES // 4 * 3 - 2**20  # as base64, with the rest of a request


def serve(url: str, host: str, port: int, examples: Sequence[tuple[str, Path]], report: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        url: Base URL of the OpenAI API.
        host: Where to listen.
        port: Where to listen; 0: a free port.
        examples: See `build_page`.
        report: Called with the page's URL once it answers there.

    Raises:
        OSError: Nothing can listen there.
    """
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        config = uvicorn.Config(create_app(url, examples), log_level="warning", timeout_graceful_shutdown=2)
        shown_host = f"[{host}]" if ":" in host else host
        report(f"http://{shown_host}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])


def create_app(url: str, examples: Sequence[tuple[str, Path]]) -> FastAPI:
    """The page as an ASGI app. What is uploaded lies in a folder of this app's own, which goes when the app ends."""
    uploads = tempfile.mkdtemp(prefix="internvideo-ui-")
    os.environ["GRADIO_TEMP_DIR"] = uploads  # the one way to tell gradio
    page = build_page(url, examples)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            shutil.rmtree(uploads, ignore_errors=True)

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.add_middleware(_Headers)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=["settings"],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=_LARGEST_FILE,
        ssr_mode=False,
        mcp_server=False,
        i18n=I18N,
        css=_CSS,
        theme=gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"]),
    )
    # gradio 6.31 checks that the paths in a request are uploads only once a page was started by its launch().
    page.has_launched = True
    return app


class _Headers:
    """Adds `_HEADERS` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, sending)
