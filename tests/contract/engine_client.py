"""A client of the model `tensorrt_llm` that knows Triton's gRPC and nothing of what is behind it."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import tritonclient.grpc as grpcclient
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from internvideo_server.limits import EngineLimits, LimitsError

MODEL = "tensorrt_llm"
PATIENCE_S = float(os.environ.get("CONTRACT_PATIENCE_S", "60"))
_LEAVING_S = 5.0
REQUIRED_OUTPUTS = ("output_ids", "sequence_length")
LOG_PROBS = ("cum_log_probs", "output_log_probs")

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array | torch.Tensor]


class RefusedError(Exception):
    """The server answered with an error."""


@dataclass
class Response:
    """One response; ``tokens`` are the ids of its only beam."""

    tensors: dict[str, Array]
    final: bool

    @property
    def tokens(self) -> list[int]:
        ids = self.tensors.get("output_ids")
        return [] if ids is None else ids.reshape(-1).tolist()


@dataclass
class Answer:
    """All responses of one request."""

    responses: list[Response] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [token for response in self.responses for token in response.tokens]

    def last(self, name: str) -> Array:
        """The newest value of an output."""
        return next(r.tensors[name] for r in reversed(self.responses) if name in r.tensors)


class Call:
    """One request on a stream of its own; leaving it ends what still runs, by `stop` as the adapter does.

    Many calls that are cancelled at once can end Triton 2.51 (``ModelStreamInferHandler::Process``, signal 11): only the tests of
    cancelling cancel.
    """

    def __init__(self, url: str, tensors: Tensors, outputs: tuple[str, ...] | None, request_id: str) -> None:
        self.request_id, self._tensors = request_id, tensors
        self._ended = False
        self._events: queue.Queue[Any] = queue.Queue()
        self._client = grpcclient.InferenceServerClient(url)
        self._client.start_stream(lambda result, error: self._events.put((result, error)))
        self._send(tensors, None if outputs is None else [grpcclient.InferRequestedOutput(name) for name in outputs])

    def _send(self, tensors: Tensors, outputs: list[grpcclient.InferRequestedOutput] | None = None) -> None:
        inputs = [_input(name, value) for name, value in tensors.items()]
        more: dict[str, Any] = {"request_id": self.request_id, "outputs": outputs, "enable_empty_final_response": True}
        self._client.async_stream_infer(MODEL, inputs, **more)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._ended and self.request_id:
            with contextlib.suppress(queue.Empty, InferenceServerException):
                self._stop()
        self.cancel()

    def _stop(self) -> None:
        """Send a `stop` behind the request, and read to the ends of both."""
        self._send({**self._tensors, "stop": np.array([[True]])})
        ends = 0
        while ends < 2:
            self._ended = False
            try:
                ends += self.next(_LEAVING_S).final
            except RefusedError:
                ends += 1

    def next(self, timeout: float = PATIENCE_S) -> Response:
        """The next response.

        Raises:
            RefusedError: It is an error.
            queue.Empty: Nothing came in time.
        """
        result, error = self._events.get(timeout=timeout)
        if error is not None:
            self._ended = True
            raise RefusedError(str(error))
        message = result.get_response()
        tensors = {output.name: result.as_numpy(output.name) for output in message.outputs}
        self._ended = message.parameters["triton_final_response"].bool_param
        return Response(tensors, self._ended)

    def rest(self) -> Answer:
        """Wait for the final response."""
        answer = Answer([self.next()])
        while not answer.responses[-1].final:
            answer.responses.append(self.next())
        return answer

    def cancel(self) -> None:
        """Cancel the call where it has not ended."""
        self._client.stop_stream(cancel_requests=not self._ended)
        self._client.close()


class EngineClient:
    """Asks the engine of one server.

    Args:
        url: ``host:port`` of its gRPC endpoint.
        engine_dir: A directory with the engine's ``config.json``; None: the one that the server's configuration names.
        headers: What the server asks for before it tells a model's configuration.
    """

    def __init__(self, url: str, engine_dir: Path | None = None, headers: dict[str, str] | None = None) -> None:
        self.url = url
        with grpcclient.InferenceServerClient(url) as client:
            self.config = client.get_model_config(MODEL, headers=headers).config
        self.engine_dir = engine_dir or Path(self.parameter("gpt_model_path"))
        self._seeds = itertools.count(1)

    def parameter(self, name: str, default: str = "") -> str:
        """A string parameter of the model's configuration."""
        return self.config.parameters[name].string_value if name in self.config.parameters else default

    @cached_property
    def limits(self) -> EngineLimits:
        """What the engine takes.

        Raises:
            LimitsError: The engine's ``config.json`` cannot be read here.
        """
        try:
            return EngineLimits.from_engine_dir(self.engine_dir)
        except LimitsError as error:
            raise LimitsError(f"{error}. Set CONTRACT_ENGINE to a directory with the engine's config.json.") from error

    @property
    def batch(self) -> int:
        """Requests that the engine runs at once."""
        return min(self.config.max_batch_size, self.limits.max_batch_size)

    @property
    def reuses_cache(self) -> bool:
        return self.parameter("enable_kv_cache_reuse", "true") == "true"  # the backend's own default

    @property
    def exact(self) -> bool:
        """Whether the same prompt gives the same ids in every batch: in 16 bits, a tie may fall either way."""
        return self.limits.dtype == "float32"

    @property
    def lacks(self) -> set[str]:
        """Inputs that the server's configuration says its engine has no use for."""
        return set(filter(None, self.parameter("unsupported_inputs").split(",")))

    def declares(self, name: str) -> bool:
        """Whether the model's configuration has this input."""
        return any(tensor.name == name for tensor in self.config.input)

    def prompt(self, length: int) -> list[int]:
        """Ids that no request had before."""
        return np.random.default_rng(next(self._seeds)).integers(100, 1000, length).tolist()

    def table(self, rows: int) -> torch.Tensor:
        """Random rows [1, rows, hidden] of the engine's dtype."""
        generator = torch.Generator().manual_seed(next(self._seeds))
        return torch.randn(1, rows, self.limits.hidden_size, generator=generator).to(getattr(torch, self.limits.dtype))

    def virtual(self, rows: int, first: int = 0) -> list[int]:
        """The ids of rows of the prompt table."""
        return list(range(self.limits.vocab_size + first, self.limits.vocab_size + first + rows))

    def tensors(self, ids: list[int], count: int = 8, **more: Any) -> Tensors:
        """A request's inputs: greedy and streaming, unless ``more`` says otherwise (``None`` leaves an input out)."""
        values: dict[str, Any] = {
            "input_ids": np.array([ids], np.int32),
            "input_lengths": len(ids),
            "request_output_len": count,
            "streaming": True,
            "runtime_top_k": 1,
            **more,
        }
        dtypes = {tensor.name: _NUMPY[model_config_pb2.DataType.Name(tensor.data_type)] for tensor in self.config.input}
        return {
            name: value if isinstance(value, np.ndarray | torch.Tensor) else np.array([[value]], dtypes[name])
            for name, value in values.items()
            if value is not None
        }

    def start(
        self,
        ids: list[int],
        count: int = 8,
        *,
        outputs: tuple[str, ...] | None = REQUIRED_OUTPUTS,
        request_id: str | None = None,
        **more: Any,
    ) -> Call:
        """Send a request."""
        return Call(self.url, self.tensors(ids, count, **more), outputs, uuid.uuid4().hex if request_id is None else request_id)

    def ask(self, ids: list[int], count: int = 8, **more: Any) -> Answer:
        """Send a request and wait for its end."""
        with self.start(ids, count, **more) as call:
            return call.rest()

    def stop(self, request_id: str) -> Answer:
        """Send ``stop`` for a request, in the form that the adapter sends it."""
        with self.start([0], 0, request_id=request_id, stop=True) as call:
            return call.rest()


_NUMPY = {
    "TYPE_BOOL": np.bool_,
    "TYPE_INT32": np.int32,
    "TYPE_UINT64": np.uint64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_BF16": np.float32,  # tables come as torch tensors
    "TYPE_STRING": np.object_,
}
_TORCH = {torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16"}


def _input(name: str, value: Array | torch.Tensor) -> grpcclient.InferInput:
    if isinstance(value, np.ndarray):
        tensor = grpcclient.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        return tensor
    tensor = grpcclient.InferInput(name, list(value.shape), _TORCH[value.dtype])
    # numpy has no bfloat16, so the bytes go as they are.
    tensor._raw_content = value.contiguous().view(torch.uint8).numpy().tobytes()
    return tensor
