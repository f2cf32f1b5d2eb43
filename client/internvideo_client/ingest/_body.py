"""Reads a JSON body from ASGI's events: media cut out, limits checked while it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from internvideo_client.errors import ApiError, bad_request

from ._scanner import Cut, JsonScanner, ScanError

#: Keys under which a medium's URL stands; under another one a string is text.
_MEDIA_KEYS = frozenset(
    ("url", "video_url", "image_url", "video", "image", "file_url", "file_data", "input_video", "input_image", "data")
)
_FOUND = 100  # characters of a parser's word


@dataclass(frozen=True)
class BodyLimits:
    """Limits of one body.

    Attributes:
        max_bytes: Of the whole.
        max_json_bytes: Of what is not a media string.
        max_messages: Items of ``messages``.
        max_parts: Content parts of all messages.
    """

    max_bytes: int = 256 << 20
    max_json_bytes: int = 8 << 20
    max_messages: int = 2048
    max_parts: int = 4096


@dataclass
class JsonDocument:
    """A body.

    Attributes:
        fields: The parsed object.
        media: Content of the media that were cut out, in pieces; the fields call them ``attachment:0``, ...
    """

    fields: dict[str, Any]
    media: list[list[bytes]] = field(default_factory=list)


async def read_json(request: Request, limits: BodyLimits, take: Callable[[int], None]) -> JsonDocument:
    """The body of a request.

    Args:
        request: Not read yet.
        limits: Of it.
        take: Called with the size of each piece that is held; raises where there is no room.

    Raises:
        ApiError: 400 (no JSON object), 413 (a limit), 415 (another type, compressed).
        ClientDisconnect: The client went away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(
            415, "the body must be a JSON object, sent with Content-Type: application/json", None, "unsupported_media_type"
        )
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError(415, "a compressed body is not taken: send it without Content-Encoding", None, "unsupported_media_type")
    _check_declared(request, limits.max_bytes)
    scanner = JsonScanner(max_rest_bytes=limits.max_json_bytes)
    seen = 0
    try:
        async for chunk in request.stream():
            seen += len(chunk)
            if seen > limits.max_bytes:
                raise _too_large(f"the request body is larger than {limits.max_bytes} bytes")
            take(len(chunk))
            scanner.feed(chunk)
        rest = scanner.finish()
    except ScanError as error:
        raise _too_large(str(error)) if error.too_large else bad_request(str(error)) from None
    document = JsonDocument(_parsed(rest))
    _check_counts(document.fields, limits)
    if scanner.cuts:
        _place(document, scanner.cuts, limits.max_json_bytes)
    return document


def _check_declared(request: Request, max_bytes: int) -> None:
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(f"the request body is larger than {max_bytes} bytes")


def _too_large(message: str) -> ApiError:
    return ApiError(413, message, None, "request_too_large")


def _parsed(rest: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(rest.decode("utf-8-sig"), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise bad_request(f"the body is not valid JSON: {error.msg[:_FOUND]} at position {error.pos}") from None
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not valid JSON: {str(error)[:_FOUND]}") from None
    if not isinstance(fields, dict):
        raise bad_request("the body must be a JSON object, sent with Content-Type: application/json")
    return _whole_characters(fields) if b"\\ud" in rest.lower() else fields


def _whole_characters(fields: dict[str, Any]) -> dict[str, Any]:
    """A text that was cut within an emoji ends in half a character, which nothing can write as UTF-8: U+FFFD stands for it."""
    text = json.dumps(fields, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        whole: dict[str, Any] = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        return whole
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check_counts(fields: dict[str, Any], limits: BodyLimits) -> None:
    for name in ("messages", "input"):
        messages = fields.get(name)
        if not isinstance(messages, list):
            continue
        if len(messages) > limits.max_messages:
            raise bad_request(f"{name}: {len(messages)} are more than the {limits.max_messages} that are taken", name)
        parts = sum(len(m["content"]) for m in messages if isinstance(m, dict) and isinstance(m.get("content"), list))
        if parts > limits.max_parts:
            raise bad_request(f"{name}: {parts} content parts are more than the {limits.max_parts} that are taken", name)


def _place(document: JsonDocument, cuts: list[Cut], max_text_bytes: int) -> None:
    """Name the media that stand where media stand; a text that only looks like one is put back.

    Raises:
        ApiError: 413: such texts have more than `max_text_bytes`.
    """
    texts = 0
    places = {owner[key]: (owner, key, name) for owner, key, name in _strings(document.fields)}
    for cut in cuts:
        if (place := places.get(cut.mark)) is None:
            continue  # the key of an object
        owner, key, name = place
        if name in _MEDIA_KEYS:
            owner[key] = f"attachment:{len(document.media)}"
            document.media.append(cut.pieces)
        else:
            texts += sum(map(len, cut.pieces))
            if texts > max_text_bytes:
                raise _too_large(f"the JSON beside its media is larger than {max_text_bytes} bytes")
            owner[key] = cut.text


def _strings(root: Any) -> Iterator[tuple[Any, Any, str]]:
    """Each string of a document: what holds it, under which key or index, and the name of the nearest key."""
    waiting: list[tuple[Any, str]] = [(root, "")]
    while waiting:
        value, name = waiting.pop()
        items: Any = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in list(items):
            near = key if isinstance(value, dict) else name
            if isinstance(child, str):
                yield value, key, near
            elif isinstance(child, dict | list):
                waiting.append((child, near))
