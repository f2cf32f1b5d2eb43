"""``POST /v1/completions``: a text goes on, without the chat template."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from internvideo_client.adapter._context import Context, context_of
from internvideo_client.adapter.generation import Answer, LogProbWriter, Piece, Pieces
from internvideo_client.adapter.http import DONE, until_disconnect
from internvideo_client.errors import ApiError, bad_request, renamed
from internvideo_client.protocol import CompletionRequest, check_sequences, model_of

from ._work import begin, document_of, stream_response, watched


async def completions(request: Request) -> Response:
    """Go on with a text, or with each of several."""
    context = context_of(request)
    async with document_of(request) as document:
        body = model_of(CompletionRequest, document.fields)
        context.check_model(body.model)
        check_sequences(body.n, body.best_of, body.stream)
        if body.stream and len(body.prompts) > 1:
            raise bad_request("prompt: a stream has one prompt", "prompt")
        if body.echo and body.logprobs is not None:
            message = "echo: with logprobs it asks for those of the prompt, which no engine of this server tells"
            raise bad_request(message, "echo", "unsupported_parameter")
        try:
            return await _answered(request, body)
        except ApiError as error:  # the chain knows messages alone
            raise renamed(error, "prompt") if error.param == "messages" else error from None


async def _answered(request: Request, body: CompletionRequest) -> Response:
    context = context_of(request)
    answers = [await _begin(request, body, prompt) for prompt in body.prompts]
    writer = _Writer(context, body, answers)
    if body.stream:
        return await stream_response(request, writer.chunks(watched(context, answers[0], True)))
    return JSONResponse(await until_disconnect(request.receive, writer.whole()))


async def _begin(request: Request, body: CompletionRequest, prompt: str | list[int]) -> Answer:
    if isinstance(prompt, str) and body.add_special_tokens is False:
        prompt = (await context_of(request).client.prepare({"prompt": prompt}))[1:]
    form = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": prompt}
    return await begin(
        request,
        body,
        form,
        media=[],
        token_limit=body.token_limit,
        top_logprobs=body.logprobs,
        cache_salt=body.cache_salt,
    )


class _Writer:
    """OpenAI's text completion, whole or in chunks."""

    def __init__(self, context: Context, body: CompletionRequest, answers: list[Answer]) -> None:
        self._context = context
        self._body = body
        self._answers = answers
        self._count = body.n or 1
        self._log_probs = None if body.logprobs is None else LogProbWriter(context.vocabulary, body.logprobs)
        self._frame: dict[str, Any] = {
            "id": f"cmpl-{answers[0].generation.request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": context.fingerprint,
        }

    async def whole(self) -> dict[str, Any]:
        """The plain answer, all prompts at once."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._collect(answer)) for answer in self._answers]
        except ExceptionGroup as faults:  # of which a client is told the first
            raise faults.exceptions[0] from None
        choices = [
            self._choice(index * self._count + place, answer, number, total)
            for index, (answer, task) in enumerate(zip(self._answers, tasks, strict=True))
            for place, (number, total) in enumerate(self._best(answer, task.result()))
        ]
        for choice, prompt in zip(choices, (p for p in self._body.prompts for _ in range(self._count)), strict=True):
            if self._body.echo:
                choice["text"] = self._echoed(prompt) + choice["text"]
        return self._frame | {"choices": choices, "usage": self._usage()}

    def _best(self, answer: Answer, totals: list[Piece]) -> list[tuple[int, Piece]]:
        sequences = answer.sequences
        order = sorted(range(len(totals)), key=lambda n: -sequences[n].log_prob / max(sequences[n].tokens, 1))
        return [(n, totals[n]) for n in (order if len(totals) > self._count else range(self._count))][: self._count]

    def _echoed(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else str(self._context.tokenizer.decode(prompt))

    async def _collect(self, answer: Answer) -> list[Piece]:
        totals = [Piece() for _ in answer.sequences]
        async with aclosing(watched(self._context, answer, False)) as source:
            async for pieces in source:
                for number, piece in pieces:
                    totals[number].text += piece.text
                    totals[number].entries += piece.entries
        return totals

    async def chunks(self, source: AsyncGenerator[Pieces]) -> AsyncGenerator[list[str]]:
        """Text as it comes, the reason of its end, then usage if asked for; an empty list: nothing for a while."""
        answer, options = self._answers[0], self._body.stream_options
        answer.report_wanted = include_usage = bool(options and options.include_usage)
        continuous = bool(include_usage and options and options.continuous_usage_stats)
        echo = self._echoed(self._body.prompts[0]) if self._body.echo else ""
        async with aclosing(source):
            async for pieces in source:
                found = [(number, piece) for number, piece in pieces if piece.text or piece.entries]
                if pieces and echo:
                    found, echo = [*((number, Piece(echo)) for number in range(self._count)), *found], ""
                if found or not pieces:
                    usage = answer.usage() if continuous else None
                    yield [self._chunk([self._choice(n, answer, n, piece, finished=False)], usage) for n, piece in found]
        out = [self._chunk([self._choice(number, answer, number, Piece())]) for number in range(self._count)]
        yield [*out, *[self._chunk([], self._usage())] * include_usage, DONE]

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> str:
        frame = self._frame | {"choices": choices} | ({} if usage is None else {"usage": usage})
        return json.dumps(frame, ensure_ascii=False, separators=(",", ":"))

    def _choice(self, index: int, answer: Answer, number: int, piece: Piece, finished: bool = True) -> dict[str, Any]:
        log_probs = self._log_probs.completion(piece.entries) if self._log_probs is not None and piece.entries else None
        choice = {
            "index": index,
            "text": piece.text,
            "logprobs": log_probs,
            "finish_reason": answer.finish_reason(number) if finished else None,
        }
        reason = answer.sequences[number].stop_reason
        return choice if reason is None or not finished else choice | {"stop_reason": reason}

    def _usage(self) -> dict[str, Any]:
        if len(self._answers) == 1:
            return self._answers[0].usage()
        counts = [answer.usage() for answer in self._answers]
        return {name: sum(each[name] for each in counts) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
