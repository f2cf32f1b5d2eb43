"""From response_format, structured_outputs, guided_* and tools to one grammar for the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from internvideo_client.errors import bad_request
from internvideo_client.protocol import ChatCompletionRequest, GenerationFields
from internvideo_client.triton import Guide

from ._schemas import checked_schema
from ._tools import forced_schema

MAX_GUIDE_BYTES = 64 * 1024  # a grammar library can be made to choke

_REGEX_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$#&\-~/])")


def guide_of(request: GenerationFields) -> Guide | None:
    """The grammar that a request asks for, None for free text.

    Raises:
        ApiError: More than one is asked for, or one is too large.
    """
    asked = list(_asked(request))
    if not asked:
        return None
    if len({name.partition(".")[0] for name, _ in asked}) > 1:
        names = " and ".join(name for name, _ in asked)
        raise bad_request(f"{names} exclude each other: give one", asked[-1][0])
    name, guide = asked[0]
    if len(guide.guide.encode("utf-8", "surrogatepass")) > MAX_GUIDE_BYTES:
        raise bad_request(f"{name}: the grammar is larger than {MAX_GUIDE_BYTES} bytes", name)
    return guide


def _asked(request: GenerationFields) -> Iterator[tuple[str, Guide]]:
    form = request.response_format
    if form is not None and form.type == "json_object":
        given = form.schema_
        yield "response_format", Guide("json") if given is None else _schema("response_format.schema", given)
    if form is not None and form.type == "json_schema" and form.json_schema is not None:
        yield "response_format", _schema("response_format.json_schema.schema", form.json_schema.schema_ or {})
    if (wanted := request.structured_outputs) is not None:
        yield from _vllm("structured_outputs.", wanted.json_, wanted.regex, wanted.choice, wanted.grammar)
        if wanted.json_object:
            yield "structured_outputs", Guide("json", field="structured_outputs.json_object")
    yield from _vllm("guided_", request.guided_json, request.guided_regex, request.guided_choice, request.guided_grammar)
    if isinstance(request, ChatCompletionRequest) and (schema := forced_schema(request)) is not None:
        yield "tool_choice", _schema("tools", schema)


def _vllm(
    prefix: str, schema: dict[str, Any] | str | None, regex: str | None, choice: list[str] | None, grammar: str | None
) -> Iterator[tuple[str, Guide]]:
    if schema is not None:
        yield f"{prefix}json", _schema(f"{prefix}json", schema)
    if regex is not None:
        yield f"{prefix}regex", Guide("regex", regex, f"{prefix}regex")
    if choice is not None:
        if not choice:
            raise bad_request(f"{prefix}choice: needs at least one", f"{prefix}choice")
        expression = "(" + "|".join(_REGEX_SPECIAL.sub(r"\\\1", each) for each in choice) + ")"
        yield f"{prefix}choice", Guide("regex", expression, f"{prefix}choice")
    if grammar is not None:
        yield f"{prefix}grammar", Guide("ebnf_grammar", grammar, f"{prefix}grammar")


def _schema(name: str, schema: dict[str, Any] | str) -> Guide:
    return Guide("json_schema", json.dumps(checked_schema(name, schema), ensure_ascii=False), name)
