"""From a body to its model: what would be lost in silence is refused, and a fault names its field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from internvideo_client.errors import bad_request

from ._chat import ChatCompletionRequest
from ._completions import CompletionRequest
from ._refused import asks, refused_fields
from ._responses import ResponsesRequest

Body = TypeVar("Body", bound=BaseModel)

_ROUTES = (ChatCompletionRequest, CompletionRequest, ResponsesRequest)
_ALL_FIELDS = frozenset(name for kind in _ROUTES for name in kind.model_fields)
#: Fields of one route that change nothing on another.
_HARMLESS = frozenset(("metadata", "parallel_tool_calls", "request_id", "store", "stream_options", "truncation", "user"))
#: An empty text is one there; of every other field it is nothing.
_TEXTS = frozenset(("prompt", "input", "instructions", "model"))
_PLAIN = re.compile(r"[a-z0-9_-]+")


def model_of(kind: type[Body], body: Mapping[str, Any]) -> Body:
    """Check a request's body.

    Raises:
        ApiError: 400 that names the first field at fault; its value is not repeated, it can be a whole video.
    """
    for name, reason in _lost_fields(kind, body):
        raise bad_request(f"{name}: {reason}", name, "unsupported_parameter")
    try:
        return kind.model_validate({name: value for name, value in body.items() if value != "" or name in _TEXTS})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = _path(first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        if not path and (name := reason.split(" ", 1)[0]) in kind.model_fields:
            raise bad_request(reason, name) from None
        raise bad_request(f"{path}: {reason}" if path else reason, path or None) from None


def _lost_fields(kind: type[BaseModel], body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    known = kind.model_fields
    yield from ((name, reason) for name, reason in refused_fields(body) if name not in known)
    for name in sorted(body.keys() & _ALL_FIELDS - known.keys() - _HARMLESS):
        if asks(body[name]):
            yield name, "this route has no such field: leave it out"


def _path(steps: tuple[int | str, ...]) -> str:
    """The field, without the steps by which pydantic names the members of a union."""
    names = [str(step) for step in steps]
    known = (not _PLAIN.fullmatch(name) or name in ("str", "int", "float", "bool", "dict", "list") for name in names)
    return ".".join(names[: next((at for at, strange in enumerate(known) if strange), len(names))])
