"""Work that ends when its client goes away, also before the first byte of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ._events import END

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client closed its connection; nobody waits for an answer."""


async def until_disconnect(receive: Receive, work: Awaitable[T]) -> T:
    """Run `work`, and cancel it as soon as the client is gone.

    Args:
        receive: ASGI receive of a request whose body was read.
        work: Ends its own work at every stage when it is cancelled.

    Raises:
        ClientGoneError: The client was gone first; `work` has ended when this is raised.
    """
    task, gone = asyncio.current_task(), False

    def leave(watcher: asyncio.Task[None]) -> None:
        nonlocal gone
        if task is not None and not watcher.cancelled():
            gone = task.cancel()

    watcher = asyncio.get_running_loop().create_task(_disconnected(receive))
    watcher.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if task is not None and gone and not task.uncancel():
            raise ClientGoneError from None
        raise
    finally:
        watcher.remove_done_callback(leave)
        watcher.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events from a generator that is closed, whatever happens, before the response ends.

    (Starlette's StreamingResponse leaves that to the garbage collector when the client goes while a chunk is being sent.)

    Args:
        first: The first event, which was awaited before, so that errors until then have a status of their own.
        events: The others.
        headers: More of them.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes], headers: dict[str, str]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        del self.headers["Content-Length"]  # the length is not known
        self._first = first
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        async with aclosing(self._events):
            try:
                await until_disconnect(receive, self._pump(send))
            except ClientGoneError:
                return

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        ended = False
        async for event in self._events:
            ended = event.endswith(END)  # leaves together with the end of the body
            await send({"type": "http.response.body", "body": event, "more_body": not ended})
        if not ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
