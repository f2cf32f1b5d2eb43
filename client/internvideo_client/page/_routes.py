"""The page's routes. It has no state on the server: everything it does is a call of the API, with the caller's own key."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

_STATIC = Path(__file__).parent / "static"
#: Where `make docs` puts the docs.
DOCS = Path(__file__).parent / "docs"

#: Nothing is loaded from another host; media may be shown from where the person says.
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob: http: https:; media-src 'self' blob: http: https:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # revalidated by ETag: a new server never runs with an old page's scripts
}
# Sphinx's pages have styles in their text, and a form that searches.
_DOCS_HEADERS = PAGE_HEADERS | {
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
}


def page_routes(examples: Path | None = None, docs: Path = DOCS) -> list[BaseRoute]:
    """``/`` and ``/page/``: the page and its assets; ``/docs/``: the docs, where they were built.

    Args:
        examples: Folder with ``examples.json`` and the videos that it names, shown while the conversation is empty.
        docs: Folder of the built docs.
    """
    routes: list[BaseRoute] = [Route("/", _to_page)]
    if examples:
        routes.append(Mount("/page/examples", _Headed(StaticFiles(directory=examples, check_dir=False))))
    routes.append(Mount("/page", _Headed(StaticFiles(directory=_STATIC, html=True)), name="page"))
    if docs.is_dir():
        routes.append(Mount("/docs", _Headed(StaticFiles(directory=docs, html=True), _DOCS_HEADERS), name="docs"))
    return routes


async def _to_page(request: Request) -> Response:
    # Relative, so that a path prefix of a proxy stays.
    return RedirectResponse("page/")


class _Headed:
    """Static files with headers of their own."""

    def __init__(self, app: StaticFiles, headers: dict[str, str] = PAGE_HEADERS) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        await self._app(scope, receive, send_headed)
