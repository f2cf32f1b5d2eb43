"""The command line's side of the OpenAI API: ask the adapter, read the stream."""

from __future__ import annotations

import base64
import ipaddress
import json
import mimetypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from ._errors import ApiError

MODEL_ID = "InternVideo2_5"
# The first token waits for the whole video; the adapter has the exact limits.
_TIMEOUT = httpx2.Timeout(600.0, connect=10.0)


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

    Raises:
        OSError: The local file cannot be read.
    """
    path = source.partition("?")[0]
    mime = mimetypes.guess_type(path)[0] or "video/mp4"
    if not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", source):
        source = f"data:{mime};base64,{base64.b64encode(Path(source).read_bytes()).decode()}"
    kind = "image_url" if mime.startswith("image/") else "video_url"
    return {"type": kind, kind: {"url": source, **options}}


def stream_answer(url: str, content: list[dict[str, Any]], settings: dict[str, Any]) -> Iterator[Part]:
    """Ask one question and give the answer as it comes.

    Args:
        url: Base URL of the adapter, with or without ``/v1``.
        content: Content parts of the user's message.
        settings: More fields of the request (``max_tokens``, ``temperature``, ...).

    Raises:
        ApiError: The server refused the request or failed, or nothing answers at `url`.
    """
    body = {
        "model": MODEL_ID,
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **settings,
    }
    endpoint = f"{url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
    try:
        with (
            # No proxy of the environment stands between a machine and itself.
            httpx2.Client(timeout=_TIMEOUT, trust_env=not _is_this_machine(endpoint)) as client,
            client.stream("POST", endpoint, json=body) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                raise _error_of(response.read(), response.status_code)
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield _part(json.loads(line.removeprefix("data: ")))
    except httpx2.TransportError as error:
        message = f"nothing answers at {endpoint} ({error}); is the server running (`internvideo serve`)?"
        raise ApiError(503, message, code="unavailable") from error


def _is_this_machine(url: str) -> bool:
    host = httpx2.URL(url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _part(event: dict[str, Any]) -> Part:
    if "error" in event:
        raise _error_of(json.dumps(event).encode(), 500)
    if not event["choices"]:
        return Part(usage=event.get("usage"))
    choice = event["choices"][0]
    return Part(choice["delta"].get("content") or "", choice["finish_reason"], event.get("usage"))


def _error_of(body: bytes, status: int) -> ApiError:
    try:
        error = json.loads(body)["error"]
        return ApiError(status, str(error["message"]), error.get("param"), error.get("code"))
    except (ValueError, KeyError, TypeError):
        return ApiError(status, f"HTTP {status}: {body[:300].decode(errors='replace')}")
