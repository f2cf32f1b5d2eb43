"""The connection to one Triton: streams, the work beside them, and how work is ended.

Triton does not pass a cancelled call on to a running step of an ensemble. So giving up a request means that a ``stop`` with its
id goes to every model of the chain, which ends the stream too. The call itself is cancelled only where that does not help: under
many cancelled calls Triton 2.51 ended by signal 11.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine
from typing import Any, Protocol, Self, TypeVar

import grpc
import numpy as np
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

from ._wire import INFER_METHOD, STREAM_METHOD, request_message, serialized, streamed
from .errors import ApiError, from_triton, reason_of
from .run_state import RunState

Result = TypeVar("Result")

ENGINE = "tensorrt_llm"
CHAIN = ("preprocessing", "vit", ENGINE)

_STOP_TIMEOUT_S = 5.0
# A step that Triton was just handing over when the first stop came did not know the id yet.
_SECOND_STOP_AFTER_S = 0.2


_CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),  # by default a server that was started again is looked for after up to 20 s
    ("grpc.min_reconnect_backoff_ms", 5000),  # which is how long one attempt may take, also on a busy machine
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # gRPC would go to its own machine through the environment's proxy, too
]

_log = logging.getLogger(__name__)


class Running(Protocol):
    """A request at work, as the connection knows it."""

    answered: bool

    def fail(self, error: ApiError, *, lost: bool) -> None:
        """End it from outside; ``lost``: because something died, so that it may be asked again."""


class TritonConnection:
    """One Triton server, as requests at work see it; use as an async context manager.

    The arguments are `TritonChatClient`'s.
    """

    def __init__(
        self, url: str, *, request_timeout_s: float, first_token_timeout_s: float | None, inactivity_timeout_s: float
    ) -> None:
        # The plain stub: tritonclient's own aio client cannot ask for the final response that makes an end visible.
        self._channel = grpc.aio.insecure_channel(url, options=_CHANNEL_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        # ModelStreamInfer takes a stream of requests; a single one is the same on the wire as a unary call's, which is less work.
        self._stream_infer = self._channel.unary_stream(
            STREAM_METHOD,
            request_serializer=serialized,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        self.infer = self._channel.unary_unary(
            INFER_METHOD, request_serializer=serialized, response_deserializer=service_pb2.ModelInferResponse.FromString
        )
        self.request_timeout_s = request_timeout_s
        self.first_token_timeout_s = request_timeout_s if first_token_timeout_s is None else first_token_timeout_s
        self.inactivity_timeout_s = inactivity_timeout_s
        self._background: set[asyncio.Task[Any]] = set()
        self.run_state: RunState | None = None
        self.running: set[Running] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection, after the stops that are on their way."""
        if self._background:
            await asyncio.wait(self._background, timeout=_STOP_TIMEOUT_S)
        await self._channel.close()

    def stream(self, payload: Any, timeout_s: float | None = None) -> Any:
        """A call of ModelStreamInfer with one request, which :func:`streamed` has marked."""
        # Where the launcher tells what is dead, a connection that is just being made anew is no reason to fail.
        return self._stream_infer(payload, timeout=timeout_s, wait_for_ready=self.run_state is not None)

    def in_background(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Work that outlives the request that it belongs to; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio reports the error of one that nobody waits for any more

    def ask_report(self, request_id: str) -> asyncio.Task[dict[str, Any]]:
        """Begin to ask for the report of a request; see :meth:`report`."""
        return self.in_background(self.report(request_id))

    async def report(self, request_id: str) -> dict[str, Any]:
        """What a request has cost and seen, once it is past the vision model, which is asked.

        Returns:
            ``preprocessing`` and ``vit`` (figure -> value: ``decode_seconds``: 0.41) and ``media``, by the fields of
            `internvideo_server.report`; empty where it is not known.
        """
        request = request_message("vit", request_id, {"timings": np.array([[True]])})
        request.outputs.add(name="timings")
        try:
            response = await self.stub.ModelInfer(request, timeout=_STOP_TIMEOUT_S)
        except grpc.RpcError as failure:
            _log.info("request %s: no report: %s", request_id, reason_of(failure))
            return {}
        report: dict[str, Any] = json.loads(InferResult(response).as_numpy("timings").reshape(-1)[0])
        return report

    async def stop(self, request_id: str) -> None:
        """End the work of a request in every model of the chain; an id that is not known is not an error.

        Raises:
            grpc.RpcError: The server is away, or a model did not take the stop.
            ApiError: The engine did not take the stop.
        """
        await asyncio.gather(*(self._stop_model(model, request_id) for model in CHAIN))

    async def stop_twice(self, request_id: str) -> None:
        """:meth:`stop`, and again for the step that was only being handed over; faults go to the log."""
        for pause in (0.0, _SECOND_STOP_AFTER_S):
            await asyncio.sleep(pause)
            results = await asyncio.gather(*(self._stop_model(model, request_id) for model in CHAIN), return_exceptions=True)
            for model, result in zip(CHAIN, results, strict=True):
                if isinstance(result, BaseException):
                    _log.warning("stop of request %s did not reach %s: %s", request_id, model, reason_of(result))

    async def _stop_model(self, model: str, request_id: str) -> None:
        stop: dict[str, np.ndarray[Any, Any]] = {"stop": np.array([[True]])}
        if model != ENGINE:
            await self.stub.ModelInfer(request_message(model, request_id, stop), timeout=_STOP_TIMEOUT_S)
            return
        # NVIDIA's config has mandatory inputs also for a stop, and the model is decoupled: only a stream reaches it.
        stop |= {"input_ids": np.array([[0]], np.int32), "input_lengths": np.array([[1]], np.int32)}
        stop |= {"request_output_len": np.array([[0]], np.int32), "streaming": np.array([[True]])}
        async for response in self.stream(streamed(request_message(model, request_id, stop)), timeout_s=_STOP_TIMEOUT_S):
            if response.error_message:
                raise from_triton(response.error_message)
