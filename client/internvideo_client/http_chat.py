"""A client's side of the OpenAI API, for the command line and :mod:`internvideo_client.video_chat`: ask, and read the stream."""

from __future__ import annotations

import ipaddress
import json
import mimetypes
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from .errors import ApiError
from .request_body import JsonBody, LocalFile, OnUpload

DEFAULT_URL = "http://127.0.0.1:9997"
MODEL_ID = "InternVideo2_5"
_TIMEOUT = httpx2.Timeout(None, connect=10.0)  # the adapter has the limits of a request
_ASKED_TWICE = "the answer was cut off: the connection ended before the answer did. Ask again"


@dataclass(frozen=True)
class Server:
    """Where to ask.

    Args:
        url: Base URL, with or without ``/v1``.
        api_key: Sent as a bearer token.
        model: Id to ask for.
        on_upload: Called while a question is sent, with its bytes so far and in all.

    Raises:
        ApiError: The URL has no scheme or no host, or is not a URL.
    """

    url: str = DEFAULT_URL
    api_key: str | None = field(default=None, repr=False)
    model: str = MODEL_ID
    on_upload: OnUpload | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        try:
            parsed = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ApiError(400, f"{self.url!r} is not a URL ({error}): give one such as {DEFAULT_URL}") from error
        if parsed.scheme not in ("http", "https"):
            raise ApiError(400, f"{self.url!r} has no http:// or https:// in front: give a URL such as {DEFAULT_URL}")
        if not parsed.host or not 0 < (parsed.port or 80) < 65536:
            raise ApiError(400, f"{self.url!r} has no host, or a port that cannot be: give a URL such as {DEFAULT_URL}")

    def endpoint(self, path: str) -> str:
        """The URL of a path below ``/v1``."""
        return f"{self.url.rstrip('/').removesuffix('/v1')}/v1/{path}"

    @property
    def headers(self) -> dict[str, str]:
        """What says who asks."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    @property
    def options(self) -> dict[str, Any]:
        """Of an HTTP client. Between a machine and itself no proxy of the environment stands."""
        return {"timeout": _TIMEOUT, "trust_env": not self._is_this_machine(), "headers": self.headers}

    def stream(self, messages: list[dict[str, Any]], settings: dict[str, Any]) -> Iterator[Part]:
        """See :func:`stream`."""
        return stream(self, messages, settings)

    def stream_async(self, messages: list[dict[str, Any]], settings: dict[str, Any]) -> AsyncGenerator[Part]:
        """See :func:`stream_async`."""
        return stream_async(self, messages, settings)

    def _is_this_machine(self) -> bool:
        host = httpx2.URL(self.url).host
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:  # a name
            return False


@dataclass(frozen=True)
class Part:
    """One event of a streamed answer: new text, why it ended, or the token counts and timings."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


def media_part(source: str | Path, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content part for a video or an image.

    Args:
        source: A URL, which the server fetches, or a local file, which is sent along (so no shared disk is needed).
        options: Sampling options of a video (``num_frames``, ``fps``, ``start``, ``end``).
    """
    text = str(source)
    mime = mimetypes.guess_type(text.partition("?")[0])[0] or "video/mp4"
    url = text if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", text) else LocalFile(Path(source), mime)
    kind = "image_url" if mime.startswith("image/") and mime != "image/gif" else "video_url"
    return {"type": kind, kind: {"url": url, **(options or {})}}


def stream(server: Server, messages: list[dict[str, Any]], settings: dict[str, Any]) -> Iterator[Part]:
    """Ask, and give the answer as it comes.

    Args:
        server: Where.
        messages: OpenAI's, with media from :func:`media_part`.
        settings: More fields of the request (``max_tokens``, ``temperature``, ...).

    Raises:
        ApiError: The server refused the request or failed, nothing answers, or the answer was cut off.
        OSError: A local file cannot be read.
    """
    endpoint, body = _request(server, messages, settings)
    reading = _Reading()
    try:
        with (
            httpx2.Client(**server.options) as client,
            client.stream("POST", endpoint, content=body.pieces(server.on_upload), headers=body.headers) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                raise error_of(response.read(), response.status_code)
            for line in response.iter_lines():
                yield from reading.part(line)
            reading.check_end()
    except httpx2.TransportError as error:
        raise reading.broken(endpoint, error) from error


async def stream_async(
    server: Server, messages: list[dict[str, Any]], settings: dict[str, Any], client: httpx2.AsyncClient | None = None
) -> AsyncGenerator[Part]:
    """As :func:`stream`; closing or cancelling it ends the work on the server.

    Args:
        server: Where.
        messages: OpenAI's.
        settings: More fields of the request.
        client: One to share between many questions; default: one of its own.
    """
    endpoint, body = _request(server, messages, settings)
    asked = httpx2.AsyncClient(**server.options) if client is None else client
    reading = _Reading()
    try:
        sent = body.pieces_async(server.on_upload)
        async with asked.stream("POST", endpoint, content=sent, headers=body.headers) as response:
            if response.status_code != httpx2.codes.OK:
                raise error_of(await response.aread(), response.status_code)
            async for line in response.aiter_lines():
                for part in reading.part(line):
                    yield part
            reading.check_end()
    except httpx2.TransportError as error:
        raise reading.broken(endpoint, error) from error
    finally:
        if client is None:
            await asked.aclose()


class _Reading:
    """A stream being read."""

    def __init__(self) -> None:
        self._begun = self._done = False

    def part(self, line: str) -> Iterator[Part]:
        """What one line says; nothing for comments, blank lines and the end."""
        self._begun = True
        if not line.startswith("data:"):
            return
        data = line[5:].strip()
        if data == "[DONE]":
            self._done = True
            return
        event = json.loads(data)
        if "error" in event:
            raise error_of(data.encode(), 500)
        choice = event["choices"][0] if event["choices"] else {"delta": {}, "finish_reason": None}
        yield Part(choice["delta"].get("content") or "", choice["finish_reason"], event.get("usage"))

    def check_end(self) -> None:
        if not self._done:
            raise ApiError(502, _ASKED_TWICE, code="cut_off")

    def broken(self, endpoint: str, error: httpx2.TransportError) -> ApiError:
        """The connection ended in the middle, or there was none."""
        if self._begun or isinstance(error, httpx2.RemoteProtocolError):
            return ApiError(502, _ASKED_TWICE, code="cut_off")
        return unreachable(endpoint, error)


def _request(server: Server, messages: list[dict[str, Any]], settings: dict[str, Any]) -> tuple[str, JsonBody]:
    document = {"model": server.model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    return server.endpoint("chat/completions"), JsonBody({**document, **settings})


def unreachable(endpoint: str, error: Exception) -> ApiError:
    """Nothing answers there."""
    message = f"nothing answers at {endpoint} ({error}); is the server running (`internvideo serve`), and is this its port?"
    return ApiError(503, message, code="unavailable")


def error_of(body: bytes, status: int) -> ApiError:
    """The error in an answer's body, in OpenAI's form or in a proxy's."""
    try:
        error = json.loads(body)["error"]
        return ApiError(status, str(error["message"]), error.get("param"), error.get("code"))
    except (ValueError, KeyError, TypeError):
        return ApiError(status, f"HTTP {status}: {body[:300].decode(errors='replace')}")
