"""From token batches to an OpenAI answer, plain or in chunks."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from .._detokenizer import StopMatcher, TokenDecoder
from .._errors import ApiError
from .._protocol import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    FinishReason,
    Message,
    TokenLogprob,
    Usage,
)
from ..triton import Generation, TokenBatch
from ._timings import stage_timings


@dataclass
class Piece:
    """What a batch of tokens adds to the answer."""

    text: str = ""
    log_probs: list[TokenLogprob] = field(default_factory=list)


class Answer:
    """State of one answer: text, counts and how it ended.

    Args:
        tokenizer: The engine's.
        request: What was asked.
        generation: The work, not begun.
        context_length: Most tokens of prompt and answer together; what is left of it bounds an answer without a limit.
    """

    def __init__(self, tokenizer: Tokenizer, request: ChatCompletionRequest, generation: Generation, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._decoder = TokenDecoder(tokenizer)
        self._matcher = StopMatcher(request.stop or [])
        self._generation = generation
        self._model = request.model
        self._token_limit = request.token_limit
        self._context_length = context_length
        self._want_log_probs = bool(request.logprobs)
        self._id = f"chatcmpl-{generation.request_id}"
        self._created = int(time.time())
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._last_is_special = False
        self._began = time.monotonic()
        self._first_token_s: float | None = None
        self._figures: dict[str, dict[str, float]] | None = None

    async def pieces(self) -> AsyncGenerator[Piece]:
        """The answer as it comes; the work ends in every stage when this generator is closed before its end."""
        async with self._generation as batches:
            async for batch in batches:
                if self._first_token_s is None and batch.token_ids:
                    self._first_token_s = time.monotonic() - self._began
                if self._figures is None:
                    self._figures = await self._generation.figures()
                yield self._add(batch)
                if self._matcher.stopped:
                    return
        yield Piece(self._matcher.push(self._decoder.flush()) + self._matcher.flush())

    def _add(self, batch: TokenBatch) -> Piece:
        self._prompt_tokens = batch.prompt_tokens or self._prompt_tokens
        piece = Piece()
        for position, token_id in enumerate(batch.token_ids):
            self._completion_tokens += 1
            self._last_is_special = self._decoder.is_special(token_id)
            piece.text += self._matcher.push(self._decoder.push(token_id))
            if position < len(batch.log_probs):
                piece.log_probs.append(self._log_prob(token_id, batch.log_probs[position]))
            if self._matcher.stopped:
                break
        return piece

    def _log_prob(self, token_id: int, log_prob: float) -> TokenLogprob:
        token = self._tokenizer.decode([token_id], skip_special_tokens=False)
        byte = self._decoder.byte_of(token_id)  # `token` is U+FFFD then: only bytes tell what the tokens make together
        return TokenLogprob(token=token, logprob=log_prob, bytes=list(token.encode()) if byte is None else [byte])

    @property
    def finish_reason(self) -> FinishReason:
        """``length`` when the limit ended it, not a stop string, a stop token or the end token."""
        ended = self._matcher.stopped or self._last_is_special
        limit = self._token_limit or self._context_length - self._prompt_tokens
        return "length" if self._completion_tokens >= limit and not ended else "stop"

    @property
    def usage(self) -> Usage:
        """Counts so far."""
        total = self._prompt_tokens + self._completion_tokens
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            total_tokens=total,
            internvideo=self.timings,
        )

    @property
    def timings(self) -> dict[str, int | float]:
        """Where the time went; complete once the first piece has come."""
        return stage_timings(self._figures or {}, self._first_token_s)

    def log_probs(self, entries: list[TokenLogprob]) -> ChoiceLogprobs | None:
        """The ``logprobs`` object, None where they were not asked for."""
        return ChoiceLogprobs(content=entries) if self._want_log_probs else None

    def completion(self, piece: Piece) -> ChatCompletion:
        """The plain form, when all pieces were put together."""
        choice = Choice(
            message=Message(content=piece.text),
            logprobs=self.log_probs(piece.log_probs),
            finish_reason=self.finish_reason,
        )
        return ChatCompletion(id=self._id, created=self._created, model=self._model, choices=[choice], usage=self.usage)

    def chunk(self, choice: ChunkChoice | None, usage: Usage | None = None) -> ChatCompletionChunk:
        """One event of the stream."""
        choices = [] if choice is None else [choice]
        return ChatCompletionChunk(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


async def whole(answer: Answer, source: AsyncGenerator[Piece]) -> ChatCompletion:
    """The plain answer."""
    total = Piece()
    async with aclosing(source) as pieces:
        async for piece in pieces:
            total.text += piece.text
            total.log_probs += piece.log_probs
    return answer.completion(total)


async def chunks(answer: Answer, source: AsyncGenerator[Piece], include_usage: bool) -> AsyncGenerator[ChatCompletionChunk]:
    """The answer in chunks: the role, text as it comes, the reason of its end, then usage if asked for.

    The first chunk waits for the first response of the chain, so that an error before it can have its own HTTP status.
    """
    role_sent = False
    async with aclosing(source) as pieces:
        async for piece in pieces:
            if not role_sent:
                role_sent = True
                yield answer.chunk(ChunkChoice(delta=Delta(role="assistant", content="")))
            if piece.text or piece.log_probs:
                log_probs = answer.log_probs(piece.log_probs)
                yield answer.chunk(ChunkChoice(delta=Delta(content=piece.text), logprobs=log_probs))
    yield answer.chunk(ChunkChoice(delta=Delta(), finish_reason=answer.finish_reason))
    if include_usage:
        yield answer.chunk(None, answer.usage)


async def events(source: AsyncGenerator[ChatCompletionChunk]) -> AsyncGenerator[bytes]:
    """Chunks as server-sent events, ending in ``[DONE]``; an error after the first event is an event too."""
    started = False
    try:
        async with aclosing(source):
            async for chunk in source:
                yield _event(_chunk_json(chunk))
                started = True
    except ApiError as error:
        if not started:
            raise
        yield _event(json.dumps(error.body, ensure_ascii=False))
    yield _event("[DONE]")


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _chunk_json(chunk: ChatCompletionChunk) -> str:
    # Only a chunk's own fields: `usage` and an absent role or content are left out, a null finish_reason is not.
    data = chunk.model_dump(exclude_none=True)
    for choice in data["choices"]:
        choice.setdefault("finish_reason", None)
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))
