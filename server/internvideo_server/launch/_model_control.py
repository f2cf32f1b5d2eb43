"""What the launcher does with a running tritonserver: load a model anew, ask whether it and its models' processes answer."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Callable

import grpc
import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from ._secret import TritonSecret

ENGINE = "tensorrt_llm"

_CALL_S = 10.0
_UNLOADED_S = 3.0  # 1 s with nothing under way; never where requests wait for a dead decoupled model (seen with Triton 2.51)
_POLL_S = 0.1


class ReloadError(Exception):
    """A model could not be loaded anew; the text says why."""


class ModelControl:
    """Talks to one tritonserver.

    Args:
        url: ``host:port`` of its gRPC endpoint.
        secret: Of the run.
    """

    def __init__(self, url: str, secret: TritonSecret) -> None:
        self._url, self._headers = url, secret.grpc_headers

    def reload(self, model: str, timeout_s: float, given_up: Callable[[], bool]) -> None:
        """Unload a model, wait until it is gone, load it: `load` alone does nothing for one whose process died.

        What still waits for the dead process keeps the old model; the new one takes its place all the same.

        Args:
            model: Its name.
            timeout_s: For the load.
            given_up: Whether to stop waiting: it has died again, or nobody needs it.

        Raises:
            ReloadError: It did not work, or was given up.
        """
        try:
            with grpcclient.InferenceServerClient(self._url, channel_args=[("grpc.enable_http_proxy", 0)]) as client:
                client.unload_model(model, headers=self._headers, client_timeout=_CALL_S)
                deadline = time.monotonic() + _UNLOADED_S
                while self._state_of(client, model) not in (None, "UNAVAILABLE") and time.monotonic() < deadline:
                    if given_up():
                        raise ReloadError(f"the reload of {model} was given up")
                    time.sleep(_POLL_S)
                self._load(client, model, timeout_s, given_up)
        except (InferenceServerException, grpc.RpcError) as error:
            raise ReloadError(f"{model} was not loaded: {error}") from error

    def _load(self, client: grpcclient.InferenceServerClient, model: str, timeout_s: float, given_up: Callable[[], bool]) -> None:
        """In a thread that is left behind when it is given up: Triton waits for ever for a process that died as it loaded."""
        errors: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def load() -> None:
            try:
                client.load_model(model, headers=self._headers, client_timeout=timeout_s)
                errors.put(None)
            except Exception as error:  # goes to whoever waits
                errors.put(error)

        threading.Thread(target=load, name=f"load-{model}", daemon=True).start()
        while not given_up():
            with contextlib.suppress(queue.Empty):
                if (error := errors.get(timeout=_POLL_S)) is not None:
                    raise error
                return
        raise ReloadError(f"the reload of {model} was given up")

    def is_unloaded(self, model: str) -> bool:
        """Whether Triton was told to unload it; False where Triton does not answer."""
        try:
            with grpcclient.InferenceServerClient(self._url, channel_args=[("grpc.enable_http_proxy", 0)]) as client:
                return self._state_of(client, model) in (None, "UNLOADING", "UNAVAILABLE")
        except (InferenceServerException, grpc.RpcError):
            return False

    def server_answers(self, timeout_s: float) -> bool:
        """Whether tritonserver itself does, whatever its models do."""
        try:
            with grpcclient.InferenceServerClient(self._url, channel_args=[("grpc.enable_http_proxy", 0)]) as client:
                return bool(client.is_server_live(client_timeout=timeout_s))
        except (InferenceServerException, grpc.RpcError):
            return False

    def answers(self, model: str, timeout_s: float) -> bool:
        """Whether a model's process takes the cheapest request there is, a `stop` of an id that nobody has."""
        try:
            with grpcclient.InferenceServerClient(self._url, channel_args=[("grpc.enable_http_proxy", 0)]) as client:
                if model == ENGINE:
                    return self._engine_answers(client, timeout_s)
                client.infer(model, [_tensor("stop", np.array([[True]]))], request_id=_probe_id(), client_timeout=timeout_s)
        except (InferenceServerException, grpc.RpcError):
            return False
        return True

    def _engine_answers(self, client: grpcclient.InferenceServerClient, timeout_s: float) -> bool:
        """The engine is decoupled: only a stream reaches it. NVIDIA's configuration makes some inputs mandatory."""
        answered, errors = threading.Event(), []

        def on_answer(result: object, error: InferenceServerException | None) -> None:
            errors.append(error)
            answered.set()

        inputs = {"stop": np.array([[True]]), "streaming": np.array([[True]]), "input_ids": np.zeros((1, 1), np.int32)}
        inputs |= {"input_lengths": np.ones((1, 1), np.int32), "request_output_len": np.zeros((1, 1), np.int32)}
        tensors = [_tensor(name, value) for name, value in inputs.items()]
        client.start_stream(on_answer, stream_timeout=timeout_s)
        client.async_stream_infer(ENGINE, tensors, request_id=_probe_id(), enable_empty_final_response=True)
        in_time = answered.wait(timeout_s)
        client.stop_stream(cancel_requests=not in_time)
        return in_time and errors[0] is None

    def _state_of(self, client: grpcclient.InferenceServerClient, model: str) -> str | None:
        index = client.get_model_repository_index(headers=self._headers, client_timeout=_CALL_S)
        return next((entry.state for entry in index.models if entry.name == model), None)


def _tensor(name: str, value: np.ndarray) -> grpcclient.InferInput:  # type: ignore[type-arg]
    kind = {"bool": "BOOL", "int32": "INT32"}[value.dtype.name]
    return grpcclient.InferInput(name, list(value.shape), kind).set_data_from_numpy(value)


def _probe_id() -> str:
    return f"probe-{uuid.uuid4().hex}"
