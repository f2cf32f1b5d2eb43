"""Write docs/api-reference.md from the OpenAPI document of the adapter; tests/test_api_reference.py compares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from internvideo_client.adapter import openapi_document

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api-reference.md"
Schema = dict[str, Any]

_INTRO = """\
# API reference

<!-- Written by build_scripts/api_reference.py from the adapter's routes and models: change those and run it. -->

Every route with its fields, answers and statuses, as `/openapi.json` has them. How the fields work together, and what each engine
can do: [the API](api.md). A field may be `null`, which is the same as leaving it out, unless it is needed.
"""


def reference() -> str:
    """The page."""
    document = openapi_document()
    parts = [_INTRO, "## Statuses\n", "\n".join(_statuses(document)) + "\n"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += _route(method.upper(), path, operation)
    return "\n".join(parts)


def _statuses(document: dict[str, Any]) -> Iterator[str]:
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    meanings = {status: answer["description"] for each in operations for status, answer in each["responses"].items()}
    yield "| status | meaning |"
    yield "|---|---|"
    yield from (f"| {status} | {meanings[status]} |" for status in sorted(meanings))


def _route(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"## {method} {path}\n"
    yield f"{operation['description']}\n"
    if operation.get("parameters"):
        yield _table("parameter", {each["name"]: each["schema"] for each in operation["parameters"]}, ())
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = content["schema"]
        yield f"The body is `{kind}`:\n"
        yield _table("field", schema["properties"], schema.get("required", ()))
        for example in content.get("examples", {}).values():
            yield f"```json\n{json.dumps(example['value'], ensure_ascii=False)}\n```\n"
    (answer, *others) = operation["responses"]["200"]["content"].items()
    yield f"The answer is `{answer[0]}`{'' if answer[1]['schema'].get('properties') else '.'}\n"
    if answer[1]["schema"].get("properties"):
        yield _table("field", answer[1]["schema"]["properties"], answer[1]["schema"]["required"], needed="always")
    for kind, content in others:
        yield f"With `stream: true` it is `{kind}`:\n"
        yield f"```text\n{content['example'].strip()}\n```\n"
    yield f"Statuses: {', '.join(sorted(operation['responses']))}.\n"


def _table(kind: str, properties: dict[str, Schema], required: Any, needed: str = "needed") -> str:
    lines = [f"| {kind} | type | |", "|---|---|---|"]
    for name, schema in properties.items():
        words = [*[needed] * (name in required), *filter(None, [schema.get("description")])]
        lines.append(f"| `{name}` | {_type(schema)} | {_escaped('; '.join(words))} |")
    return "\n".join(lines) + "\n"


def _type(schema: Schema, depth: int = 0) -> str:
    """In words: alternatives, bounds, and the fields of an object that stands in another."""
    several = schema.get("anyOf") or schema.get("oneOf")
    if several:
        return " or ".join(dict.fromkeys(_type(each, depth) for each in several if each.get("type") != "null"))
    if words := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return " or ".join(f"`{_escaped(str(word))}`" for word in words)
    kind = schema.get("type")
    if isinstance(kind, list):
        return " or ".join(each for each in kind if each != "null")
    if kind == "array":
        inner = schema.get("items") or {}
        most = f", at most {schema['maxItems']}" if "maxItems" in schema else ""
        return f"list of {_type(inner, depth)}{most}" if inner else f"list{most}"
    if kind == "object" and schema.get("properties") and depth < 2:
        inside = (f"`{name}` {_type(each, depth + 1)}".rstrip() for name, each in schema["properties"].items())
        return "{" + ", ".join(inside) + "}"
    return f"{kind or 'anything'}{_bounds(schema)}"


def _bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    high = None if high is not None and high >= 2**31 - 1 else high
    low = None if low is not None and low <= -(2**31) else low
    if low is not None and high is not None:
        return f" {low:g} to {high:g}"
    if high is not None:
        return f" to {high:g}"
    return f" from {low:g}" if low is not None else ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Write the page."""
    PAGE.write_text(reference())


if __name__ == "__main__":
    typer.run(main)
