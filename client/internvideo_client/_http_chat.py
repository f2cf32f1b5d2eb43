"""A client's side of the OpenAI API, for the command line and the page: ask the adapter, read the stream."""

from __future__ import annotations

import ipaddress
import json
import mimetypes
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from ._errors import ApiError
from ._protocol import MAX_BODY_BYTES
from ._request_body import JsonBody, LocalFile

MODEL_ID = "InternVideo2_5"
_TIMEOUT = httpx2.Timeout(None, connect=10.0)  # the adapter has the limits of a request


@dataclass(frozen=True)
class Part:
    """One event of a streamed answer: new text, why it ended, or the token counts and timings."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


def media_part(source: str, options: dict[str, int | float]) -> dict[str, Any]:
    """The content part for a video or an image.

    Args:
        source: A URL, which the server fetches, or a local file, which is sent along (so no shared disk is needed).
        options: Sampling options of a video (``num_frames``, ``fps``, ``start``, ``end``).
    """
    path = source.partition("?")[0]
    mime = mimetypes.guess_type(path)[0] or "video/mp4"
    url = source if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", source) else LocalFile(Path(source), mime)
    kind = "image_url" if mime.startswith("image/") else "video_url"
    return {"type": kind, kind: {"url": url, **options}}


def stream_answer(url: str, content: list[dict[str, Any]], settings: dict[str, Any]) -> Iterator[Part]:
    """Ask one question and give the answer as it comes.

    Args:
        url: Base URL of the adapter, with or without ``/v1``.
        content: Content parts of the user's message.
        settings: More fields of the request (``max_tokens``, ``temperature``, ...).

    Raises:
        ApiError: The server refused the request or failed, or nothing answers at `url`.
        OSError: A local file cannot be read.
    """
    endpoint, body = _request(url, [{"role": "user", "content": content}], settings)
    try:
        with (
            httpx2.Client(timeout=_TIMEOUT, trust_env=not _is_this_machine(endpoint)) as client,
            client.stream("POST", endpoint, content=body.pieces(), headers=body.headers) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                raise _error_of(response.read(), response.status_code)
            for line in response.iter_lines():
                if (part := _part(line)) is not None:
                    yield part
    except httpx2.TransportError as error:
        raise _unreachable(endpoint, error) from error


async def stream_conversation(url: str, messages: list[dict[str, Any]], settings: dict[str, Any]) -> AsyncGenerator[Part]:
    """As `stream_answer`, for a whole conversation; closing or cancelling it ends the work on the server.

    Raises:
        ApiError: As `stream_answer`; and before anything is sent, where a server with the default limit would not take it.
        OSError: A local file cannot be read.
    """
    endpoint, body = _request(url, messages, settings)
    if body.size > MAX_BODY_BYTES:
        raise ApiError(
            413,
            f"the videos of this request are too large to send: it would be {body.size / 2**20:.0f} MiB, and the server takes "
            f"{MAX_BODY_BYTES >> 20} MiB (encoded, a video is a third larger than its file). Cut or compress the video, or "
            "give its URL for the server to fetch",
            code="request_too_large",
        )
    try:
        async with (
            httpx2.AsyncClient(timeout=_TIMEOUT, trust_env=not _is_this_machine(endpoint)) as client,
            client.stream("POST", endpoint, content=body.pieces_async(), headers=body.headers) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                raise _error_of(await response.aread(), response.status_code)
            async for line in response.aiter_lines():
                if (part := _part(line)) is not None:
                    yield part
    except httpx2.TransportError as error:
        raise _unreachable(endpoint, error) from error


def _request(url: str, messages: list[dict[str, Any]], settings: dict[str, Any]) -> tuple[str, JsonBody]:
    document = {
        "model": MODEL_ID,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **settings,
    }
    return f"{url.rstrip('/').removesuffix('/v1')}/v1/chat/completions", JsonBody(document)


def _is_this_machine(url: str) -> bool:
    """Between a machine and itself no proxy of the environment stands."""
    host = httpx2.URL(url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _part(line: str) -> Part | None:
    """One line of the stream; None where it says nothing."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return None
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        raise _error_of(json.dumps(event).encode(), 500)
    if not event["choices"]:
        return Part(usage=event.get("usage"))
    choice = event["choices"][0]
    return Part(choice["delta"].get("content") or "", choice["finish_reason"], event.get("usage"))


def _unreachable(endpoint: str, error: Exception) -> ApiError:
    message = f"nothing answers at {endpoint} ({error}); is the server running (`internvideo serve`)?"
    return ApiError(503, message, code="unavailable")


def _error_of(body: bytes, status: int) -> ApiError:
    try:
        error = json.loads(body)["error"]
        return ApiError(status, str(error["message"]), error.get("param"), error.get("code"))
    except (ValueError, KeyError, TypeError):
        return ApiError(status, f"HTTP {status}: {body[:300].decode(errors='replace')}")
