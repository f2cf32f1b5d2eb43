"""Asking Triton itself over gRPC, without the adapter: what :class:`VideoChat` does for a ``grpc://`` address."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from .detokenizer import StopMatcher, TokenDecoder, Vocabulary
from .engine_files import load_engine, load_tokenizer
from .errors import ApiError, bad_request
from .http_chat import Part
from .media_region import MediaRegion
from .request_body import LocalFile
from .timings import prompt_details, stage_timings
from .triton import SamplingParams, TritonChatClient

SCHEME = "grpc://"
#: Fields of OpenAI's request that the ensemble takes as they are; the others are the adapter's work.
_SAMPLING = {field.name for field in dataclasses.fields(SamplingParams)} - {
    *("num_return_sequences", "log_probs", "num_top_logprobs", "embedding_bias", "bad_words", "guide")
}
_log = logging.getLogger(__name__)


class TritonServer:
    """Where to ask.

    Args:
        url: ``grpc://HOST:PORT`` of Triton.
        engine: The engine directory: its ``tokenizer.json`` makes text of token ids.
        secret_file: ``triton_secret`` of the run's directory. With it, on the server's machine, local files go by shared memory;
            else their bytes are sent.

    Raises:
        ApiError: The URL has no port.
        OSError, ValueError: The engine directory cannot be read.
    """

    def __init__(self, url: str, engine: Path, secret_file: Path | None = None) -> None:
        self._address = url.removeprefix(SCHEME).rstrip("/")
        host, _, port = self._address.rpartition(":")
        if not host or not port.isdecimal():
            raise bad_request(f"{url!r} has no host and port: give Triton's gRPC address, such as grpc://127.0.0.1:8001")
        self._vocabulary = Vocabulary(load_tokenizer(engine / "tokenizer.json"))
        self._context_length = load_engine(engine / "tokenizer.json").context_length
        self._secret_file = secret_file

    async def stream_async(self, messages: list[dict[str, Any]], settings: dict[str, Any]) -> AsyncGenerator[Part]:
        """Ask, and give the answer as it comes; closing it ends the work in every model.

        Raises:
            ApiError: The server refused the request or failed, or a setting is the adapter's alone.
            OSError: A local file cannot be read.
        """
        sampling, matcher = _sampling(settings)
        began, first_token_s = time.monotonic(), None
        detokenizer = TokenDecoder(self._vocabulary)
        prompt_tokens = count = 0
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(TritonChatClient(self._address))
            messages, files = _without_files(messages)
            media = await self._media(client, files, stack)
            work = await stack.enter_async_context(client.generate(messages, sampling, **media))
            async for batch in work:
                prompt_tokens = batch.prompt_tokens or prompt_tokens
                text = "".join(map(detokenizer.push, batch.token_ids))
                count += len(batch.token_ids)
                if batch.token_ids and first_token_s is None:
                    first_token_s = time.monotonic() - began
                if text := matcher.push(text):
                    yield Part(text)
                if matcher.stopped:
                    break
            if not matcher.stopped and (text := matcher.push(detokenizer.flush()) + matcher.flush()):
                yield Part(text)
            left = self._context_length - prompt_tokens
            limit = left if sampling.max_tokens is None else min(sampling.max_tokens, left)
            yield Part(finish_reason="length" if count >= limit and not matcher.stopped else "stop")
            timings = stage_timings(await _report(client, work.request_id), first_token_s)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count, "total_tokens": prompt_tokens + count}
        details = prompt_details(timings)
        yield Part(usage={**usage, **({"prompt_tokens_details": details} if details else {}), "internvideo": timings})

    def stream(self, messages: list[dict[str, Any]], settings: dict[str, Any]) -> Iterator[Part]:
        """As :meth:`stream_async`, for a caller without an event loop (or within one): the loop is a thread of its own."""
        with _Loop() as loop:
            parts = self.stream_async(messages, settings)
            try:
                while (part := loop.run(anext(parts, None))) is not None:
                    yield part
            finally:
                loop.run(parts.aclose())

    async def _media(self, client: TritonChatClient, files: list[Path], stack: AsyncExitStack) -> dict[str, Any]:
        """How the files travel: by a shared region where Triton can read it, else as bytes."""
        if not files:
            return {}
        if (secret := self._secret()) is not None:
            try:
                region = stack.enter_context(await asyncio.to_thread(MediaRegion, files))
                if sum(region.sizes):
                    return {"region": await stack.enter_async_context(client.shared(region, secret))}
            except grpc.RpcError as error:
                _log.info("no shared memory with %s (%s): the bytes are sent", self._address, error)
        return {"media": [[await asyncio.to_thread(file.read_bytes)] for file in files]}

    def _secret(self) -> str | None:
        try:
            return None if self._secret_file is None else self._secret_file.read_text().strip()
        except OSError as error:
            _log.info("%s cannot be read (%s): the bytes of files are sent", self._secret_file, error.strerror)
            return None


def _sampling(settings: dict[str, Any]) -> tuple[SamplingParams, StopMatcher]:
    """The engine's parameters and what ends the text, from OpenAI's fields."""
    wanted = {name: value for name, value in settings.items() if value is not None}
    wanted.setdefault("max_tokens", wanted.pop("max_completion_tokens", None))
    stop = wanted.pop("stop", ())
    if unknown := sorted(wanted.keys() - _SAMPLING):
        raise bad_request(f"{unknown[0]}: not over gRPC, only over the adapter's HTTP", unknown[0], "unsupported_parameter")
    if wanted.get("seed") is not None:
        wanted["seed"] %= 2**64
    return SamplingParams(**wanted), StopMatcher([stop] if isinstance(stop, str) else list(stop))


def _without_files(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Path]]:
    """The messages with ``attachment:N`` in the place of local files, and the files; equal ones once."""
    files: list[Path] = []

    def named(value: Any) -> Any:
        if isinstance(value, LocalFile):
            if value.path not in files:
                files.append(value.path)
            return f"attachment:{files.index(value.path)}"
        if isinstance(value, dict):
            return {name: named(each) for name, each in value.items()}
        return [named(each) for each in value] if isinstance(value, list) else value

    return named(messages), files


async def _report(client: TritonChatClient, request_id: str) -> dict[str, Any]:
    try:
        return await client.report(request_id)
    except (grpc.RpcError, ApiError):  # timings are no part of the answer
        return {}


class _Loop:
    """An event loop in a thread of its own."""

    def __enter__(self) -> _Loop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="internvideo-grpc", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Any) -> Any:
        """Run an awaitable there, and wait."""

        async def wait() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result()
