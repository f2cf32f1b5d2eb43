"""Server-sent events: what is ready together leaves together, and silence is filled with comments."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from internvideo_client.errors import ApiError

PING = b": ping\n\n"
#: Proxies close a connection that is silent for longer than a minute or half of one.
HEARTBEAT_S = 10.0
#: The last chunk of a stream, and its event.
DONE = "[DONE]"
END = b"data: [DONE]\n\n"


async def events(source: AsyncGenerator[list[str]]) -> AsyncGenerator[bytes]:
    """Chunks as events, the last of which is `DONE`; no chunks are a ping. An error after the first event is an event too.

    Raises:
        ApiError: Before the first event, so that it can be an answer with a status.
    """
    started = False
    try:
        async with aclosing(source):
            async for chunks in source:
                yield b"".join(map(event, chunks)) if chunks else PING
                started = True
    except ApiError as error:
        if not started:
            raise
        yield event(json.dumps(error.body, ensure_ascii=False)) + END


def event(data: str, name: str | None = None) -> bytes:
    """One event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {data}\n\n".encode()
