"""Async client of the ensemble: one gRPC stream for each request, token ids as they come, and an end that ends the work.

Triton does not pass a cancelled call on to a running step of an ensemble. So giving up a request means that a ``stop`` with its
id goes to every model of the chain, which ends the stream too. The call itself is cancelled only where that does not help: under
many cancelled calls Triton 2.51 ended by signal 11.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy as np
from tritonclient.grpc import InferInput, InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

from ._errors import ApiError, bad_request, from_code, from_triton, reason_of

Result = TypeVar("Result")

ENSEMBLE = "internvideo2_5"
CHAIN = ("preprocessing", "vit", "tensorrt_llm")

_OUTPUTS = ("output_ids", "sequence_length", "num_input_tokens")

_STOP_TIMEOUT_S = 5.0
_FIGURES_WAIT_S = 0.2  # the first token waits for them
_PROBE_TIMEOUT_S = 5.0
_END_TIMEOUT_S = 1.0
_STOPPED_TIMEOUT_S = 1.0  # from the stops to the end of the stream
# A step that Triton was just handing over when the first stop came did not know the id yet.
_SECOND_STOP_AFTER_S = 0.2

_GREEDY_BELOW = 1e-5  # scores divided by much less are infinite in float32, and the answer is noise

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # gRPC would go to its own machine through the environment's proxy, too
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How to generate, in TensorRT-LLM's own terms; None leaves the engine's default.

    Attributes:
        max_tokens: Most tokens to generate; None is what is left of the context.
        temperature: None or less than 1e-5 is greedy.
        seed: Unsigned 64 bit.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    log_probs: bool = False

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """The ensemble's input tensors, each [1, 1] (the leading 1 is the batch)."""
        values: dict[str, Any] = {
            "request_output_len": np.int32(-1 if self.max_tokens is None else self.max_tokens),
            "streaming": np.bool_(True),
            "return_num_input_tokens": np.bool_(True),
            "repetition_penalty": _optional(np.float32, self.repetition_penalty),
            "presence_penalty": _optional(np.float32, self.presence_penalty),
            "frequency_penalty": _optional(np.float32, self.frequency_penalty),
            "min_tokens": _optional(np.int32, self.min_tokens),
            "return_log_probs": np.bool_(True) if self.log_probs else None,
        }
        if (self.temperature or 0.0) < _GREEDY_BELOW or self.top_p == 0:
            # TensorRT-LLM rewrites a temperature of 0 in its own way: greedy is top-k 1.
            values["runtime_top_k"] = np.int32(1)
        else:
            values["temperature"] = np.float32(self.temperature)
            values["runtime_top_k"] = np.int32(max(self.top_k or 0, 0))
            # Never left out: without top-k and top-p TensorRT-LLM takes the likeliest token, whatever the temperature.
            values["runtime_top_p"] = np.float32(1.0 if self.top_p is None else self.top_p)
            values["seed"] = _optional(np.uint64, self.seed)
        return {name: np.array([[value]]) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class TokenBatch:
    """What one response of the stream brought: 0 or more new tokens.

    Attributes:
        token_ids: New tokens; the end token is never among them, a stop word's token may be.
        log_probs: One for each new token, where they were asked for.
        prompt_tokens: Length of the prompt, visual tokens included; None where the response does not say.
    """

    token_ids: list[int]
    log_probs: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None


class TritonChatClient:
    """Client of one Triton server; use as an async context manager.

    Args:
        url: ``HOST:PORT`` of Triton's gRPC endpoint.
        request_timeout_s: Longest time for a whole request. The models learn it too, and end their part of the work by it.
        first_token_timeout_s: Longest silence before the first response (fetching, decoding and the tower take their time);
            None: as long as the whole request may take.
        inactivity_timeout_s: Longest silence between two responses. A dead engine says nothing, so silence is its only sign.
    """

    def __init__(
        self,
        url: str,
        *,
        request_timeout_s: float = 300.0,
        first_token_timeout_s: float | None = None,
        inactivity_timeout_s: float = 60.0,
    ) -> None:
        # The plain stub: tritonclient's own aio client cannot ask for the final response that makes an end visible.
        self._channel = grpc.aio.insecure_channel(url, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._request_timeout_s = request_timeout_s
        self._first_token_timeout_s = request_timeout_s if first_token_timeout_s is None else first_token_timeout_s
        self._inactivity_timeout_s = inactivity_timeout_s
        self._background: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> TritonChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection, after the stops that are on their way."""
        if self._background:
            await asyncio.wait(self._background, timeout=_STOP_TIMEOUT_S)
        await self._channel.close()

    def generate(
        self, messages: list[dict[str, Any]], sampling: Sampling | None = None, request_id: str | None = None
    ) -> Generation:
        """Ask the ensemble; ``async with`` the result, then iterate over it.

        Args:
            messages: The conversation in OpenAI's form.
            sampling: How to generate; greedy by default.
            request_id: A unique id, under which the work can be stopped; made here by default.

        Raises:
            ApiError: `messages` cannot be written as JSON.
        """
        sampling = sampling or Sampling()
        tensors = {"messages": np.array([[_to_json(messages)]], dtype=np.object_)} | sampling.tensors()
        request = _request(ENSEMBLE, request_id or uuid.uuid4().hex, tensors)
        for name in _OUTPUTS + ("output_log_probs",) * sampling.log_probs:
            request.outputs.add(name=name)
        request.parameters["timeout"].int64_param = round(1e6 * self._request_timeout_s)  # Triton's own: microseconds
        return Generation(self, request, self._request_timeout_s, self._first_token_timeout_s, self._inactivity_timeout_s)

    async def stop(self, request_id: str) -> None:
        """End the work of a request in every model of the chain; an id that is not known is no error.

        Raises:
            grpc.RpcError: The server is away, or a model did not take the stop.
            ApiError: The engine did not take the stop.
        """
        await asyncio.gather(*(self._stop_model(model, request_id) for model in CHAIN))

    async def check_ready(self) -> None:
        """Ask the server, each model, and then each model's process by the cheapest request there is.

        The ready endpoints stay true when a model's process has died, so a `stop` with an unknown id probes it.

        Raises:
            ApiError: Something is not ready; the message names it.
        """
        probe_id = f"probe-{uuid.uuid4().hex}"
        asked = "Triton"
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                ready = (await self._stub.ServerReady(service_pb2.ServerReadyRequest())).ready
                for asked in (ENSEMBLE, *CHAIN) if ready else ():
                    ready = ready and (await self._stub.ModelReady(service_pb2.ModelReadyRequest(name=asked))).ready
                for asked in CHAIN if ready else ():
                    await self._stop_model(asked, probe_id)
        except (TimeoutError, grpc.RpcError, ApiError) as error:
            _log.warning("readiness probe of %s failed: %s", asked, reason_of(error))
            raise from_code("UNAVAILABLE", f"{asked} does not answer") from error
        if not ready:
            raise from_code("UNAVAILABLE", "not all models are loaded")

    async def figures(self, request_id: str) -> dict[str, dict[str, float]]:
        """What a request has cost in the models that finished with it: model -> figure -> value (``decode_seconds``: 0.41).

        A model that does not answer at once is left out.
        """
        tasks = {model: self._in_background(self._figures_of(model, request_id)) for model in ("preprocessing", "vit")}
        await asyncio.wait(tasks.values(), timeout=_FIGURES_WAIT_S)
        known = {}
        for model, task in tasks.items():
            if task.done() and (error := task.exception()) is None:
                known[model] = task.result()
            else:
                reason = reason_of(error) if task.done() and error else "no answer yet"
                _log.info("request %s: %s does not tell its timings: %s", request_id, model, reason)
        return known

    async def _figures_of(self, model: str, request_id: str) -> dict[str, float]:
        request = _request(model, request_id, {"timings": np.array([[True]])})
        request.outputs.add(name="timings")
        response = await self._stub.ModelInfer(request, timeout=_STOP_TIMEOUT_S)
        figures: dict[str, float] = json.loads(_flat(InferResult(response), "timings")[0])
        return figures

    def _in_background(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio reports the error of one that nobody waits for any more

    async def _stop_twice(self, request_id: str) -> None:
        for pause in (0.0, _SECOND_STOP_AFTER_S):
            await asyncio.sleep(pause)
            results = await asyncio.gather(*(self._stop_model(model, request_id) for model in CHAIN), return_exceptions=True)
            for model, result in zip(CHAIN, results, strict=True):
                if isinstance(result, BaseException):
                    _log.warning("stop of request %s did not reach %s: %s", request_id, model, reason_of(result))

    async def _stop_model(self, model: str, request_id: str) -> None:
        stop: dict[str, np.ndarray[Any, Any]] = {"stop": np.array([[True]])}
        if model != "tensorrt_llm":
            await self._stub.ModelInfer(_request(model, request_id, stop), timeout=_STOP_TIMEOUT_S)
            return
        # NVIDIA's config has mandatory inputs also for a stop, and the model is decoupled: only a stream reaches it.
        stop |= {"input_ids": np.array([[0]], np.int32), "input_lengths": np.array([[1]], np.int32)}
        stop |= {"request_output_len": np.array([[0]], np.int32), "streaming": np.array([[True]])}
        async for response in self._stream(_request(model, request_id, stop), _STOP_TIMEOUT_S):
            if response.error_message:
                raise from_triton(response.error_message)

    def _stream(self, request: Any, timeout_s: float | None = None) -> Any:
        # Without it, a stream whose last response came empty would never be told to have ended.
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        return self._stub.ModelStreamInfer(_once(request), timeout=timeout_s)


class Generation:
    """One request at work: iterate inside ``async with``; leaving it early ends the work in every model.

    Raises (while iterating):
        ApiError: What the chain reported, or DEADLINE_EXCEEDED after a silence beyond the limit.
    """

    def __init__(
        self,
        client: TritonChatClient,
        request: Any,
        request_timeout_s: float,
        first_timeout_s: float,
        inactivity_timeout_s: float,
    ) -> None:
        self._client = client
        self._request = request
        self._request_timeout_s = request_timeout_s
        self._first_timeout_s = first_timeout_s
        self._inactivity_timeout_s = inactivity_timeout_s
        self._call: Any = None
        self._reading: asyncio.Future[Any] | None = None
        self._ended = False
        self._log_probs_seen = 0
        self.request_id: str = request.id

    async def __aenter__(self) -> Generation:
        self._call = self._client._stream(self._request)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._ended:
            self._client._in_background(self._end_early())
        elif not self._call.done():
            # A cancel between the final response and the end of the stream makes Triton 2.51 keep the request for ever: it then
            # waits for it when it is told to end.
            await self._read_to_the_end(_END_TIMEOUT_S)

    async def figures(self) -> dict[str, dict[str, float]]:
        """See :meth:`TritonChatClient.figures`; complete once the first response has come."""
        return await self._client.figures(self.request_id)

    async def _end_early(self) -> None:
        stops = self._client._in_background(self._client._stop_twice(self.request_id))
        await self._read_to_the_end(_STOPPED_TIMEOUT_S)
        await stops

    async def _read_to_the_end(self, timeout_s: float) -> None:
        """Let the stream end by itself; cancel it if it does not."""
        try:
            async with asyncio.timeout(timeout_s):
                if self._reading is not None:
                    await self._reading
                async for _ in self._call:
                    pass
        except (TimeoutError, StopAsyncIteration, grpc.RpcError) as error:
            _log.info("the stream of request %s did not end by itself: %s", self.request_id, reason_of(error))
        finally:
            self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[TokenBatch]:
        timeout_s = self._first_timeout_s
        responses = aiter(self._call)
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._request_timeout_s
        while not self._ended:
            try:
                async with asyncio.timeout(min(timeout_s, deadline - clock())):
                    # In a task of its own: a read that is cancelled cancels the call.
                    self._reading = asyncio.ensure_future(anext(responses))
                    response = await asyncio.shield(self._reading)
            except TimeoutError as silence:
                if clock() >= deadline:
                    message = f"the request took longer than the {self._request_timeout_s:g} s that one may take"
                    raise from_code("DEADLINE_EXCEEDED", message) from silence
                message = f"the server sent nothing for {timeout_s:g} s; the request was ended"
                raise from_code("DEADLINE_EXCEEDED", message) from silence
            except StopAsyncIteration as end:
                self._ended = True
                raise from_code("INTERNAL", "the server closed the stream before the answer was complete") from end
            except asyncio.CancelledError:
                # grpc.aio raises it also for a call that the server cancelled; then nobody wants this task to end.
                if (task := asyncio.current_task()) and not task.cancelling():
                    self._ended = True
                    raise from_code("CANCELLED", "the server cancelled the request") from None
                raise
            except grpc.RpcError as failure:
                _log.error("request %s: %s", self.request_id, reason_of(failure))
                raise from_triton(failure) from failure
            if response.error_message:
                self._ended = True
                _log.info("request %s: %s", self.request_id, response.error_message)
                raise from_triton(response.error_message)
            result = response.infer_response
            self._ended = result.parameters["triton_final_response"].bool_param
            timeout_s = self._inactivity_timeout_s
            yield self._batch(InferResult(result))

    def _batch(self, result: InferResult) -> TokenBatch:
        ids = _flat(result, "output_ids")
        token_ids = [int(i) for i in ids if i >= 0]  # -1 pads
        # In a stream, log probs are all those so far, while ids are the new ones.
        all_log_probs = _flat(result, "output_log_probs")
        log_probs = [float(p) for p in all_log_probs[self._log_probs_seen : self._log_probs_seen + len(token_ids)]]
        self._log_probs_seen += len(token_ids)
        return TokenBatch(token_ids, log_probs, _scalar(result, "num_input_tokens"))


def _optional(kind: type, value: float | None) -> Any:
    return None if value is None else kind(value)


def _request(model: str, request_id: str, tensors: dict[str, np.ndarray[Any, Any]]) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, value in tensors.items():
        tensor = InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        request.inputs.append(tensor._get_tensor())
        request.raw_input_contents.append(tensor._get_content())
    return request


async def _once(request: Any) -> AsyncIterator[Any]:
    yield request


def _flat(result: InferResult, name: str) -> np.ndarray[Any, Any]:
    value = result.as_numpy(name)
    return np.empty(0) if value is None else value.reshape(-1)


def _scalar(result: InferResult, name: str) -> int | None:
    value = _flat(result, name)
    return int(value[0]) if value.size else None


def _to_json(messages: list[dict[str, Any]]) -> bytes:
    try:
        return json.dumps(messages, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # NaN, a lone surrogate, an endless nest
        raise bad_request(f"messages is not plain JSON text: {error}", "messages") from error
