"""Triton backend `tensorrtllm` for hosts without NVIDIA's: the same contract, on internvideo_server.engine."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

from internvideo_server.engine import (
    EngineFigures,
    Heartbeat,
    Output,
    RefusedRequestError,
    VllmOptions,
    fault_text,
    load_engine,
    parse_request,
)
from internvideo_server.settings import EngineSettings, VllmSettings, from_parameters
from internvideo_server.triton_model import keep_loaded, parameters, prepare_process

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """Decoupled: `execute` hands each request to the engine, which answers from its own thread."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the engine directory named by `gpt_model_path`."""
        prepare_process()
        given = parameters(args)
        settings = from_parameters(EngineSettings, given)
        vllm = VllmOptions.of(from_parameters(VllmSettings, given)) if given.get("engine") == "vllm" else None
        config = json.loads(args["model_config"])
        gpu = settings.gpu_device_ids
        self._reuse, self._exclude_input = settings.enable_kv_cache_reuse, settings.exclude_input_in_output
        if not gpu:
            torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # a step is short: the rest is the vision tower's
        self._device = torch.device(f"cuda:{gpu}" if gpu else "cpu")
        self._heartbeat = Heartbeat()
        metrics = _EngineMetrics(args["model_name"], args["model_version"])

        def report(figures: EngineFigures) -> None:
            self._heartbeat.beat(figures.beats if figures.active else None)
            metrics(figures)

        self._engine = load_engine(
            settings.gpt_model_path,
            self._device,
            max_queue_size=int(config.get("dynamic_batching", {}).get("default_queue_policy", {}).get("max_queue_size", 0)),
            reuse=self._reuse,
            cancellation_check_period=settings.cancellation_check_period_ms / 1000,
            report=report,
            on_death=_end_process,
            vllm=vllm,
            gpu_memory=settings.gpu_memory,
        )
        keep_loaded()

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
                sink.fail(fault_text(error, f"the request could not be taken: {type(error).__name__}"))

    def finalize(self) -> None:
        """End the engine."""
        self._engine.close()
        self._heartbeat.close()  # last: the end may be stuck, too

    def _take(self, request: Any, sink: _ResponseSink) -> None:
        tensors: dict[str, np.ndarray[Any, Any]] = {}
        table: torch.Tensor | None = None
        for tensor in request.inputs():
            if tensor.name() == "prompt_embedding_table":
                # From the tower's GPU to this one's, which may be another.
                table = from_dlpack(tensor.to_dlpack()).to(self._device, copy=True)
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


def _end_process() -> None:
    """An engine that died is cured by loading the model anew, which the launcher does where its process ends."""
    _log.critical("the engine has died: its process ends")
    os._exit(1)


class _EngineMetrics:
    """Requests in the batch and waiting, and the KV cache in use, under NVIDIA's names, and the tokens computed."""

    def __init__(self, model: str, version: str) -> None:
        gauge = pb_utils.MetricFamily.GAUGE
        labels = {"model": model, "version": version}
        # Kept: a metric ends with its family, and using it then ends the stub.
        self._requests = pb_utils.MetricFamily("nv_trt_llm_request_metrics", "TRT LLM request metrics", gauge)
        self._blocks = pb_utils.MetricFamily("nv_trt_llm_kv_cache_block_metrics", "TRT LLM KV cache block metrics", gauge)
        self._tokens = pb_utils.MetricFamily(
            "internvideo_engine_tokens_total", "Tokens that went through the language model", pb_utils.MetricFamily.COUNTER
        )
        self._computed, self._told = self._tokens.Metric(labels=labels), 0
        kinds = ("active", "scheduled", "waiting")
        self._of = {kind: self._requests.Metric(labels={**labels, "request_type": kind}) for kind in kinds}
        self._used = self._blocks.Metric(labels={**labels, "kv_cache_block_type": "fraction"})

    def __call__(self, figures: EngineFigures) -> None:
        """Set them. What is in the batch is active, of those a step computes all."""
        active = figures.active
        for kind, value in (("active", active), ("scheduled", active), ("waiting", figures.waiting)):
            self._of[kind].set(value)
        if figures.cache_used is not None:
            self._used.set(figures.cache_used)
        self._computed.increment(figures.computed_tokens - self._told)
        self._told = figures.computed_tokens


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
        tensors: dict[str, np.ndarray[Any, Any]] = {
            "output_ids": output.output_ids[None, None],  # [1, 1, tokens]
            "sequence_length": np.array([[len(output.output_ids)]], np.int32),  # [1, 1]
        }
        if output.log_probs is not None:
            tensors["cum_log_probs"] = output.log_probs.sum(dtype=np.float32).reshape(1, 1)
            tensors["output_log_probs"] = output.log_probs[None, None]  # [1, 1, generated]
        if output.top_logprob_ids is not None and output.top_logprobs is not None:
            tensors["top_logprob_ids"] = output.top_logprob_ids[None]  # [1, tokens, num_top_logprobs]
            tensors["top_logprobs"] = output.top_logprobs[None]
        if output.sequence_index is not None:
            tensors["sequence_index"] = np.array([[output.sequence_index]], np.int32)
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
