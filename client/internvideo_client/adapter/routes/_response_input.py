"""The items of a response's input as chat messages, and its output as the messages of the turns that follow."""

from __future__ import annotations

import re
from typing import Any

from internvideo_client.errors import bad_request
from internvideo_client.protocol import ChatCompletionRequest, ResponsesRequest, model_of

#: Of a chat completion -> of a response.
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
}
_MESSAGE = re.compile(r"messages\.(\d+)")
_ROLES = ("system", "developer", "user", "assistant")


def input_items_of(body: ResponsesRequest) -> list[dict[str, Any]]:
    """The input as items; a text is one of the user."""
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": body.input}]}]
    return body.input


def shown_item(item: dict[str, Any], number: int) -> dict[str, Any]:
    """An item of an input as OpenAI lists it: with an id, a type, and the parts of a message."""
    kind, own = item.get("type") or "message", item.get("id")
    shown = {**item, "id": own if isinstance(own, str) else f"item_{number}", "type": kind}
    if kind == "message" and isinstance(item.get("content"), str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        shown["content"] = [{"type": part, "text": item["content"]}]
    return shown


def chat_request(body: ResponsesRequest, earlier: list[dict[str, Any]], items: list[dict[str, Any]]) -> ChatCompletionRequest:
    """The same question as a chat completion.

    Args:
        body: What was asked.
        earlier: Messages of the response that this one goes on from; its instructions are not taken over.
        items: Of the input.

    Raises:
        ApiError: An item that is not known.
    """
    messages = [message for message in earlier if not message.get("instructions")]
    messages += [_message(item, i) for i, item in enumerate(items) if item.get("type") != "reasoning"]
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions, "instructions": True})
    form = body.text.format if body.text is not None else None
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": messages,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "stream": body.stream,
        "cache_salt": body.cache_salt,
        **body.as_in_chat,
    }
    if body.told_logprobs is not None:
        chat |= {"logprobs": True, "top_logprobs": body.told_logprobs}
    if form is not None and form.type != "text":
        chat["response_format"] = {"type": form.type}
        if form.type == "json_schema":
            chat["response_format"]["json_schema"] = {"name": form.name, "schema": form.schema_, "strict": form.strict}
    if body.tools:
        functions = [tool.model_dump(exclude={"type"}, exclude_none=True) for tool in body.tools]
        chat["tools"] = [{"type": "function", "function": function} for function in functions]
    choice = body.tool_choice
    if choice is not None:
        chat["tool_choice"] = choice if isinstance(choice, str) else {"type": "function", "function": {"name": choice.name}}
    return model_of(ChatCompletionRequest, chat)


def own_name(param: str, items: list[dict[str, Any]], before: int) -> str:
    """A field of the chat completion by its name in the response that asked for it.

    Args:
        param: As the chat's faults name it.
        items: Of the input.
        before: Messages in front of theirs.
    """
    if (found := _MESSAGE.match(param)) is None:
        return _NAMES.get(param, param)
    number = int(found[1]) - before
    if number < 0:
        return "previous_response_id"
    places = [i for i, item in enumerate(items) if item.get("type") != "reasoning"]
    return f"input.{places[min(number, len(places) - 1)]}{param[found.end() :]}" if places else "input"


def output_messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    """A response's output as messages of the conversation."""
    messages: list[dict[str, Any]] = []
    for item in document["output"]:
        if item["type"] == "message":
            messages.append({"role": "assistant", "content": "".join(part["text"] for part in item["content"])})
        else:
            messages.append(_call(item))
    return messages


def _message(item: dict[str, Any], index: int) -> dict[str, Any]:
    kind = item.get("type") or "message"
    if kind == "message":
        if item.get("role") not in _ROLES:
            raise bad_request(f"input.{index}.role: must be one of {', '.join(_ROLES)}", f"input.{index}.role")
        return {"role": item["role"], "content": item.get("content")}
    if kind == "function_call":
        return _call(item)
    if kind == "function_call_output":
        output = item.get("output")
        if not isinstance(output, str | list):
            raise bad_request(f"input.{index}.output: must be a text or a list of parts", f"input.{index}.output")
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
    raise bad_request(f"input.{index}.type: {str(kind)[:40]!r} is not known here", f"input.{index}.type")


def _call(item: dict[str, Any]) -> dict[str, Any]:
    function = {"name": item.get("name", ""), "arguments": item.get("arguments", "")}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": item.get("call_id"), "type": "function", "function": function}],
    }
