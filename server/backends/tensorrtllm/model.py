"""Triton backend `tensorrtllm` for hosts without NVIDIA's: the same contract, on internvideo_server.engine."""

from __future__ import annotations

import gc
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from internvideo_server.engine import Engine, Output, RefusedRequestError, parse_request
from internvideo_server.work import parameters

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """Decoupled: `execute` hands each request to the engine, which answers from its own thread."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the engine directory named by `gpt_model_path`."""
        settings = parameters(args)
        config = json.loads(args["model_config"])
        gpu = settings.get("gpu_device_ids", "")
        self._reuse = settings.get("enable_kv_cache_reuse", "true") == "true"
        self._exclude_input = settings.get("exclude_input_in_output", "false") == "true"
        if not gpu:
            torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # a step is short: the rest is the vision tower's
        self._device = torch.device(f"cuda:{gpu}" if gpu else "cpu")
        self._engine = Engine.load(
            Path(settings["gpt_model_path"]),
            self._device,
            max_queue_size=int(config.get("dynamic_batching", {}).get("default_queue_policy", {}).get("max_queue_size", 0)),
            reuse=self._reuse,
            cancellation_check_period=int(settings.get("cancellation_check_period_ms", "100")) / 1000,
            report=_RequestMetrics(args["model_name"], args["model_version"]),
        )
        gc.freeze()  # what is loaded stays: the end's collections then take milliseconds, not seconds

    def execute(self, requests: list[Any]) -> None:
        """Queue the requests; GPU tensors are valid only here, so they are copied."""
        for request in requests:
            sink = _ResponseSink(request)
            try:
                self._take(request, sink)
            except RefusedRequestError as error:
                sink.fail(str(error))
            except Exception as error:  # a fault of this request must not leave the others of the list unanswered
                _log.exception("request %s failed", request.request_id())
                sink.fail(f"the request could not be taken: {type(error).__name__}")

    def finalize(self) -> None:
        """End the engine."""
        self._engine.close()

    def _take(self, request: Any, sink: _ResponseSink) -> None:
        tensors: dict[str, np.ndarray[Any, Any]] = {}
        table: torch.Tensor | None = None
        for tensor in request.inputs():
            if tensor.name() == "prompt_embedding_table":
                # From the tower's GPU to this one's, which may be another.
                table = torch.from_dlpack(tensor.to_dlpack()).to(self._device, copy=True)
                if table.is_cuda:
                    torch.cuda.current_stream(table.device).synchronize()
            else:
                tensors[tensor.name()] = tensor.as_numpy().copy()
        if "stop" in tensors and tensors["stop"].any():
            if not request.request_id():
                raise RefusedRequestError("Trying to stop a request but request ID is not provided")
            self._engine.stop(request.request_id())
            sink.end()
            return
        sink.check_outputs()
        parsed = parse_request(tensors, table, self._engine.limits, exclude_input=self._exclude_input, reuse=self._reuse)
        self._engine.submit(request.request_id(), parsed, sink)


class _RequestMetrics:
    """The requests in the batch and waiting, on Triton's metrics page under NVIDIA's name."""

    def __init__(self, model: str, version: str) -> None:
        gauge = pb_utils.MetricFamily.GAUGE
        self._family = pb_utils.MetricFamily("nv_trt_llm_request_metrics", "TRT LLM request metrics", gauge)  # kept: see below
        labels = {"model": model, "version": version}
        self._active, self._waiting = (self._family.Metric(labels={**labels, "request_type": t}) for t in ("active", "waiting"))

    def __call__(self, active: int, waiting: int) -> None:
        """Set both. (A metric ends with its family, and using it then ends the stub.)"""
        self._active.set(active)
        self._waiting.set(waiting)


class _ResponseSink:
    """Sends one request's responses through Triton."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._wanted = set(request.requested_output_names())

    def check_outputs(self) -> None:
        """Refuse a request that does not ask for what NVIDIA's backend insists on."""
        for name in ("output_ids", "sequence_length"):
            if name not in self._wanted:
                text = f"Error encountered while populating response: {name} tensor must be present in list of output tensors"
                raise RefusedRequestError(text)

    def send(self, output: Output) -> None:
        """One response, of those outputs that the client asked for."""
        tensors = {
            "output_ids": output.output_ids[None, None],  # [1, 1, tokens]
            "sequence_length": np.array([[len(output.output_ids)]], np.int32),  # [1, 1]
        }
        if output.log_probs is not None:
            tensors["cum_log_probs"] = output.log_probs.sum(dtype=np.float32).reshape(1, 1)
            tensors["output_log_probs"] = output.log_probs[None, None]  # [1, 1, generated]
        if output.num_input_tokens is not None:
            tensors["num_input_tokens"] = np.array([[output.num_input_tokens]], np.int32)
        wanted = [pb_utils.Tensor(name, value) for name, value in tensors.items() if name in self._wanted]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if output.final else 0
        self._sender.send(pb_utils.InferenceResponse(output_tensors=wanted), flags=flags)

    def fail(self, text: str, *, cancelled: bool = False) -> None:
        """The error as the final response."""
        code = pb_utils.TritonError.CANCELLED if cancelled else pb_utils.TritonError.INTERNAL
        response = pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def end(self) -> None:
        """An empty final response."""
        self._sender.send(pb_utils.InferenceResponse(output_tensors=[]), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""
        return bool(self._sender.is_cancelled())
