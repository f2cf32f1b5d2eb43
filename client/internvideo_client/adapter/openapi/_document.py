"""What the routes say of themselves in ``/openapi.json``: bodies, every status, the event stream."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from .schemas import ERROR, Schema

_STATUSES = {
    400: "The request cannot succeed as it is; `param` names the field",
    401: "An API key is needed",
    403: "A host, origin, path or medium that is not allowed",
    404: "There is no such model, file or response",
    408: "The request came too slowly",
    413: "Larger than a limit",
    415: "Another content type is needed",
    422: "A medium is not there, or its host does not answer",
    429: "The queue, or the key's share, is full; Retry-After says when to come again",
    431: "The headers are larger than 64 KiB",
    500: "A fault of the server",
    501: "The server was started without this",
    503: "A model is away, the server stops, or too much is held at once; Retry-After says when to come again",
    504: "It took longer than a request may; x-should-retry is false",
}
#: What a connection, a host name, a page's origin, a server that stops or has a fault can make of any route, by its status.
ANY = (403, 408, 431, 500, 503)
#: The same of one that asks for a key.
KEYED = (*ANY, 401, 429)

_SCHEME = "key"


def describe(app: FastAPI, keys: bool) -> None:
    """Let the app answer ``/openapi.json`` with its routes, and with the key that they ask for.

    Args:
        app: With all of its routes.
        keys: Whether there are API keys.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document_of_routes(app, keys)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI's documentation does it


def document_of_routes(app: FastAPI, keys: bool) -> dict[str, Any]:
    """The document."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    found.setdefault("components", {}).setdefault("schemas", {})["Error"] = ERROR
    if keys:
        found["components"]["securitySchemes"] = {_SCHEME: {"type": "http", "scheme": "bearer"}}
        for methods in found["paths"].values():
            for operation in methods.values():
                if "401" in operation["responses"]:
                    operation["security"] = [{_SCHEME: []}]
    return found


def json_body(model: type[BaseModel], **examples: Any) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads its body itself."""
    content: dict[str, Any] = {"schema": _inlined(model.model_json_schema(ref_template="#/components/schemas/{model}"))}
    content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def form_body() -> dict[str, Any]:
    """Of the upload of a file."""
    properties = {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "default": "vision"}}
    schema = {"type": "object", "required": ["file"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def parameters(place: str, **schemas: Schema) -> dict[str, Any]:
    """``openapi_extra`` with parameters of the path or the query."""
    return {
        "parameters": [
            {"name": name, "in": place, "required": place == "path", "schema": schema} for name, schema in schemas.items()
        ]
    }


def responses(answer: Schema, *statuses: int, stream: str | None = None, kind: str = "application/json") -> dict[int | str, Any]:
    """The answers of a route: 200, and errors by their statuses.

    Args:
        answer: Schema of the 200.
        statuses: Of errors.
        stream: What an event stream looks like; None: there is none.
        kind: Content type of the 200.
    """
    content: dict[str, Any] = {kind: {"schema": answer}}
    if stream is not None:
        # OpenAPI 3.1 has no words for the events of a stream.
        content["text/event-stream"] = {"schema": {"description": "server-sent events"}, "example": stream}
    found: dict[int | str, Any] = {200: {"description": "The answer", "content": content}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return found | {status: {"description": _STATUSES[status], "content": error} for status in sorted(set(statuses))}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its definitions in their places: a route's extra cannot add components."""
    definitions = schema.pop("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(each) for each in value]
        if not isinstance(value, dict):
            return value
        name = str(value.get("$ref", "")).rpartition("/")[2]
        if name in definitions:
            return put(definitions[name]) | {k: put(v) for k, v in value.items() if k != "$ref"}
        return {key: put(each) for key, each in value.items()}

    inlined: dict[str, Any] = put(schema)
    return inlined
