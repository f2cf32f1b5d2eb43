"""An answer as OpenAI's chat completion, whole or in chunks. Written by hand: a token passes here in a few microseconds."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from internvideo_client.adapter.generation import Answer, CallReader, LogProbWriter, Piece, Pieces, forced_name, is_forced
from internvideo_client.adapter.http import DONE
from internvideo_client.protocol import ChatCompletionRequest

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class AnswerNames:
    """What every answer tells of itself."""

    id: str
    model: str
    fingerprint: str


class ChatJson:
    """Writes the answers of one request.

    Args:
        answer: The request's.
        request: What was asked.
        names: Id, model and fingerprint.
    """

    def __init__(self, answer: Answer, request: ChatCompletionRequest, names: AnswerNames) -> None:
        self._answer = answer
        self._count = request.n or 1
        self._best_of = request.sequences > self._count
        self._log_probs = (
            LogProbWriter(answer.vocabulary, request.top_logprobs or 0, bool(request.return_tokens_as_token_ids))
            if request.logprobs
            else None
        )
        forced = is_forced(request)
        self._calls = [CallReader(forced_name(request)) for _ in answer.sequences] if forced else None
        options = request.stream_options
        self._include_usage = bool((options and options.include_usage) or request.return_frames_info)
        self._continuous_usage = self._include_usage and bool(options and options.continuous_usage_stats)
        self._names = names
        self._created = int(time.time())
        self._head = (
            f'{{"id":{_encode(names.id)},"object":"chat.completion.chunk","created":{self._created},'
            f'"model":{_encode(names.model)},"system_fingerprint":{_encode(names.fingerprint)},"choices":['
        )

    async def whole(self, source: AsyncGenerator[Pieces]) -> dict[str, Any]:
        """The plain answer."""
        totals = [Piece() for _ in self._answer.sequences]
        async with aclosing(source):
            async for pieces in source:
                for number, piece in pieces:
                    totals[number].text += piece.text
                    totals[number].entries += piece.entries
        order = self._best() if self._best_of else range(self._count)
        return {
            "id": self._names.id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._names.model,
            "system_fingerprint": self._names.fingerprint,
            "choices": [self._choice(index, number, totals[number]) for index, number in enumerate(order)],
            "usage": self._answer.usage(),
        }

    def _best(self) -> list[int]:
        sequences = self._answer.sequences
        return sorted(range(len(sequences)), key=lambda n: -sequences[n].log_prob / max(sequences[n].tokens, 1))[: self._count]

    def _choice(self, index: int, number: int, total: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": total.text}
        if self._calls is not None:
            call = self._calls[number]
            call.push(total.text)
            call.finish()
            message = {"role": "assistant", "content": None, "tool_calls": [call.json()]}
        choice = {
            "index": index,
            "message": message,
            "logprobs": None if self._log_probs is None else self._log_probs.chat(total.entries),
            "finish_reason": self._finish_reason(number),
        }
        reason = self._answer.sequences[number].stop_reason
        return choice if reason is None else choice | {"stop_reason": reason}

    def _finish_reason(self, number: int) -> str:
        reason = self._answer.finish_reason(number)
        return "tool_calls" if self._calls is not None and reason == "stop" else reason

    async def chunks(self, source: AsyncGenerator[Pieces]) -> AsyncGenerator[list[str]]:
        """The answer in chunks: the role, text as it comes, the reason of its end, then usage if asked for.

        What comes together is given together; an empty list stands for a while without anything. The first chunks wait for the
        first response of the chain, so that an error before it can have its own HTTP status.
        """
        self._answer.report_wanted = self._include_usage
        roles_sent = False
        async with aclosing(source):
            async for pieces in source:
                out: list[str] = []
                if pieces and not roles_sent:
                    roles_sent = True
                    role = '{"role":"assistant","content":""}' if self._calls is None else '{"role":"assistant","content":null}'
                    out = [self._chunk(number, role) for number in range(self._count)]
                out += [text for number, piece in pieces if (text := self._delta(number, piece)) is not None]
                if out or not pieces:
                    yield out
        yield [*self._ends(), DONE]

    def _ends(self) -> list[str]:
        out = []
        for number in range(self._count):
            if self._calls is not None and (call := self._calls[number].finish()) is not None:
                out.append(self._chunk(number, _encode({"tool_calls": [call.json()]})))
            stop = self._answer.sequences[number].stop_reason
            out.append(self._chunk(number, "{}", finish=self._finish_reason(number), stop=stop))
        if self._include_usage:
            out.append(f'{self._head}],"usage":{_encode(self._answer.usage())}}}')
        return out

    def _delta(self, number: int, piece: Piece) -> str | None:
        log_probs = _encode(self._log_probs.chat(piece.entries)) if self._log_probs is not None and piece.entries else None
        if self._calls is not None:
            call = self._calls[number].push(piece.text)
            return None if call is None else self._chunk(number, _encode({"tool_calls": [call.json()]}), log_probs)
        if not piece.text and log_probs is None:
            return None
        return self._chunk(number, f'{{"content":{_encode(piece.text)}}}', log_probs)

    def _chunk(
        self, index: int, delta: str, log_probs: str | None = None, finish: str | None = None, stop: str | int | None = None
    ) -> str:
        text = f'{self._head}{{"index":{index},"delta":{delta}'
        if log_probs is not None:
            text += f',"logprobs":{log_probs}'
        text += f',"finish_reason":{"null" if finish is None else _encode(finish)}'
        if stop is not None:
            text += f',"stop_reason":{_encode(stop)}'
        usage = f',"usage":{_encode(self._answer.usage())}' if self._continuous_usage else ""
        return f"{text}}}]{usage}}}"
