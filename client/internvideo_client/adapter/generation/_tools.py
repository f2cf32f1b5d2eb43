"""Calls of functions: a named or required one is forced by a JSON grammar, and comes back as ``tool_calls``."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from internvideo_client.protocol import ChatCompletionRequest, NamedTool

from ._schemas import moved_schema

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def forced_name(request: ChatCompletionRequest) -> str | None:
    """The one function that has to be called; None: none, or the model chooses among several."""
    if isinstance(request.tool_choice, NamedTool):
        return request.tool_choice.function.name
    if request.tool_choice == "required" and request.tools and len(request.tools) == 1:
        return request.tools[0].function.name
    return None


def is_forced(request: ChatCompletionRequest) -> bool:
    """Whether the answer is a call."""
    return isinstance(request.tool_choice, NamedTool) or request.tool_choice == "required"


def forced_schema(request: ChatCompletionRequest) -> dict[str, Any] | None:
    """What the answer has to look like: the function's arguments, or a name and arguments; None: as it likes."""
    if not is_forced(request):
        return None
    parameters = {tool.function.name: tool.function.parameters or _NO_ARGUMENTS for tool in request.tools or []}
    if (name := forced_name(request)) is not None:
        return parameters[name]
    places = [f"/anyOf/{number}/properties/arguments" for number in range(len(parameters))]
    schemas = map(moved_schema, parameters.values(), places)
    return {"anyOf": [_call_schema(name, schema) for name, schema in zip(parameters, schemas, strict=True)]}


def _call_schema(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def with_tool_prompt(request: ChatCompletionRequest, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with the functions described before the last one where one of them has to be called."""
    if not is_forced(request):
        return messages
    described = [tool.function.model_dump(exclude_none=True, exclude={"strict"}) for tool in request.tools or []]
    name = forced_name(request)
    task = f'Answer with the arguments of a call of "{name}"' if name else 'Answer with {"name": FUNCTION, "arguments": {...}}'
    text = f"{json.dumps(described, ensure_ascii=False)}\nThese functions can be called. {task} as JSON, and nothing else."
    return [*messages[:-1], {"role": "system", "content": text}, messages[-1]]


@dataclass
class CallDelta:
    """What a piece of text adds to a call; the first one has its id and name."""

    arguments: str
    id: str | None = None
    name: str | None = None

    def json(self) -> dict[str, Any]:
        """One entry of a chunk's ``tool_calls``."""
        if self.id is None:
            return {"index": 0, "function": {"arguments": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": 0, "id": self.id, "type": "function", "function": function}


class CallReader:
    """Reads a call out of the answer's text as it comes.

    Args:
        name: The function, where the text has its arguments alone.
    """

    def __init__(self, name: str | None) -> None:
        self._given = name is not None
        self._buffer = ""
        self.id = f"call_{secrets.token_hex(12)}"
        self.name = name
        self.arguments = ""
        self._begun = False

    def push(self, text: str) -> CallDelta | None:
        """What this text adds, None while the name is not complete."""
        if not text:
            return None
        if self._given:
            return self._delta(text)
        self._buffer += text
        if self.name is None:
            if (head := _HEAD.match(self._buffer)) is None:
                return None
            self.name, self._buffer = json.loads(head[1]), self._buffer[head.end() :]
        # The object around name and arguments ends in a brace, which may be the last that came.
        keep = len(self._buffer.rstrip().removesuffix("}").rstrip()) if self._buffer.rstrip().endswith("}") else len(self._buffer)
        text, self._buffer = self._buffer[:keep], self._buffer[keep:]
        return self._delta(text) if text else None

    def finish(self) -> CallDelta | None:
        """What was kept back, but for the brace around it; also of a text that a limit cut off."""
        rest = "" if self._given or self.name is None else self._buffer.rstrip().removesuffix("}").rstrip()
        self._buffer = ""
        return self._delta(rest) if rest or (self.name is not None and not self._begun) else None

    def _delta(self, text: str) -> CallDelta:
        self.arguments += text
        if self._begun:
            return CallDelta(text)
        self._begun = True
        return CallDelta(text, self.id, self.name)

    def json(self) -> dict[str, Any]:
        """The whole call."""
        return {"id": self.id, "type": "function", "function": {"name": self.name or "", "arguments": self.arguments}}
