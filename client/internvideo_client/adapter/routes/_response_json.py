"""A response as OpenAI's object, and the events in which it comes."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from internvideo_client.adapter.generation import Answer, CallReader, LogProbWriter, Pieces, TokenEntry, forced_name, is_forced
from internvideo_client.adapter.http import PING, event
from internvideo_client.errors import ApiError
from internvideo_client.protocol import ChatCompletionRequest, ResponsesRequest


class ResponseJson:
    """Builds one response.

    Args:
        answer: Of the chain.
        body: What was asked.
        chat: The same as a chat completion.
        response_id: Of the response.
        stored: Whether it is kept.

    Attributes:
        document: The response's object as it stands now.
    """

    def __init__(
        self, answer: Answer, body: ResponsesRequest, chat: ChatCompletionRequest, response_id: str, stored: bool
    ) -> None:
        self._answer = answer
        self._call = CallReader(forced_name(chat)) if is_forced(chat) else None
        self._log_probs = None if body.told_logprobs is None else LogProbWriter(answer.vocabulary, body.told_logprobs)
        self._entries: list[TokenEntry] = []
        self._text = ""
        self._number = 0
        suffix = response_id.removeprefix("resp_")
        self._item_id = f"msg_{suffix}" if self._call is None else f"fc_{suffix}"
        form = None if body.text is None or body.text.format is None else body.text.format
        self.document: dict[str, Any] = {
            "id": response_id,
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "model": body.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": stored,
            "temperature": body.temperature if body.temperature is not None else 0.0,
            "text": {"format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": _tool_choice(body),
            "tools": [tool.model_dump() for tool in body.tools or []],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p if body.top_p is not None else 1.0,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
        }

    async def whole(self, source: AsyncGenerator[Pieces]) -> None:
        """Fill `document`."""
        async with aclosing(source):
            async for pieces in source:
                for _, piece in pieces:
                    self._text += piece.text
                    self._entries += piece.entries
        self._complete()

    async def events(self, source: AsyncGenerator[Pieces], done: Callable[[], Awaitable[None]]) -> AsyncGenerator[bytes]:
        """The response in events; `done` is waited for before the last one.

        Raises:
            ApiError: Before the first event, so that it can be an answer with a status.
        """
        begun = False
        try:
            async with aclosing(source):
                async for pieces in source:
                    if not begun:
                        begun = True
                        yield self._begin()
                    if not pieces:
                        yield PING
                    for _, piece in pieces:
                        if events := self._delta(piece.text, piece.entries):
                            yield events
        except ApiError as error:
            if not begun:
                raise
            yield self._failed(error)
            return
        self._complete()
        await done()
        yield self._end()

    def _begin(self) -> bytes:
        item = self._item("in_progress") | {"content" if self._call is None else "arguments": [] if self._call is None else ""}
        out = self._event("response.created", response=self.document) + self._event(
            "response.in_progress", response=self.document
        )
        out += self._event("response.output_item.added", output_index=0, item=item)
        if self._call is None:
            out += self._event("response.content_part.added", **self._place(), part=_text_part(""))
        return out

    def _delta(self, text: str, entries: list[TokenEntry]) -> bytes:
        self._text += text
        self._entries += entries
        if self._call is not None:
            call = self._call.push(text)
            place = {"item_id": self._item_id, "output_index": 0}
            return b"" if call is None else self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        if not text and not entries:
            return b""
        return self._event("response.output_text.delta", **self._place(), delta=text, logprobs=self._logprobs(entries))

    def _end(self) -> bytes:
        (item,) = self.document["output"]
        if self._call is None:
            (part,) = item["content"]
            out = self._event("response.output_text.done", **self._place(), text=part["text"], logprobs=part["logprobs"])
            out += self._event("response.content_part.done", **self._place(), part=part)
        else:
            place = {"item_id": self._item_id, "output_index": 0, "name": item["name"]}
            out = self._event("response.function_call_arguments.done", **place, arguments=item["arguments"])
        out += self._event("response.output_item.done", output_index=0, item=item)
        return out + self._event(f"response.{self.document['status']}", response=self.document)

    def _failed(self, error: ApiError) -> bytes:
        self.document |= {"status": "failed", "error": {"code": "server_error", "message": error.body["error"]["message"]}}
        return self._event("response.failed", response=self.document)

    def _complete(self) -> None:
        limited = self._answer.finish_reason(0) == "length"
        if self._call is not None:
            if not self._call.arguments:
                self._call.push(self._text)
            self._call.finish()
        status = "incomplete" if limited else "completed"
        usage = self._answer.usage()
        details = usage.get("prompt_tokens_details") or {}
        self.document |= {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if limited else None,
            "completed_at": None if limited else int(time.time()),
            "output": [self._item(status)],
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0, **details},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
                "internvideo": usage["internvideo"],
            },
        }

    def _item(self, status: str) -> dict[str, Any]:
        if self._call is not None:
            return {
                "type": "function_call",
                "id": self._item_id,
                "call_id": self._call.id,
                "name": self._call.name or "",
                "arguments": self._call.arguments,
                "status": status,
            }
        content = [_text_part(self._text) | {"logprobs": self._logprobs(self._entries)}]
        return {"type": "message", "id": self._item_id, "role": "assistant", "status": status, "content": content}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _logprobs(self, entries: list[TokenEntry]) -> list[dict[str, Any]]:
        return [] if self._log_probs is None else self._log_probs.chat(entries)["content"]

    def _event(self, kind: str, **fields: Any) -> bytes:
        text = json.dumps({"type": kind, "sequence_number": self._number, **fields}, ensure_ascii=False, separators=(",", ":"))
        self._number += 1
        return event(text, kind)


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _tool_choice(body: ResponsesRequest) -> Any:
    choice = body.tool_choice
    return choice.model_dump() if choice is not None and not isinstance(choice, str) else choice or "auto"
