"""A gRPC server that speaks Triton's protocol and the ensemble's contract, with scripted answers.

It and the adapter run on one event loop in a thread, so tests talk to both through real sockets.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvicorn
from tokenizers import Tokenizer, decoders, models
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from internvideo_client.adapter import create_app
from internvideo_server.settings import AdapterSettings

TEXTS = ("guided_decoding_guide_type", "guided_decoding_guide", "cache_salt")
LISTS = ("video_sizes", "stop_token_ids", "bad_words_list", "embedding_bias")
#: What the ensemble takes beside its first inputs.
INPUTS = (*TEXTS, *LISTS, "video_bytes", "min_p", "num_return_sequences", "num_top_logprobs", "ignore_eos")
PROMPT_TOKENS = 1894
CONTEXT_LENGTH = PROMPT_TOKENS + 6


@dataclass
class Step:
    """One response of the ensemble: new ids, or an error text; `gate` is waited for before it."""

    ids: list[int] = field(default_factory=list)
    error: str | None = None
    gate: threading.Event | None = None
    log_probs: list[float] | None = None  # cumulative, as TensorRT-LLM's are
    silent: bool = False  # the engine's process died: nothing comes any more
    abort: str | None = None  # the stream ends with this gRPC status
    sequence: int | None = None  # of num_return_sequences
    top: list[list[tuple[int, float]]] | None = None  # likeliest tokens with each
    cut: bool = False  # the stream ends well, without a final response


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        self.script: list[Step] = []
        self.first_scripts: list[list[Step]] = []  # of the first requests, where they are not answered by `script`
        self.port = 0
        self.requests: list[dict[str, Any]] = []  # of the ensemble: its tensors, and "id"
        self.stops: list[tuple[str, str]] = []  # model, request id
        self.cancelled = threading.Event()
        self.reached = threading.Event()  # a request is at the ensemble
        self.not_ready: set[str] = set()
        self.dead: set[str] = set()  # ready as ever, but their process is gone
        self.inputs: tuple[str, ...] = INPUTS
        self.lingers_s = 0.0  # from the final response to the end of the stream
        self.report: dict[str, Any] = {}  # what `vit` tells of the last request

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready="server" not in self.not_ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=request.name not in self.not_ready)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        response = service_pb2.ModelMetadataResponse(name=request.name)
        for name in self.inputs:
            response.inputs.add(name=name)
        return response

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        asked = tensors(request)
        assert asked in ({"stop": True}, {"timings": True}), (
            "preprocessing and vit take a stop, vit a question for the report, alone"
        )
        if request.model_name in self.dead:
            await context.abort(grpc.StatusCode.INTERNAL, f"Stub process '{request.model_name}_0_0' is not healthy.")
        if "timings" in asked:
            assert request.model_name == "vit"
            return self._report(request)
        self.stops.append((request.model_name, request.id))
        return service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)

    def _report(self, request: Any) -> Any:
        response = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        report = self.report if request.id == self.requests[-1]["id"] else {}
        response.outputs.add(name="timings", datatype="BYTES", shape=[1, 1])
        response.raw_output_contents.append(serialize_byte_tensor(np.array([json.dumps(report).encode()], np.object_)).item())
        return response

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        assert not any(key == "triton_grpc_error" for key, _ in context.invocation_metadata())
        async for request in requests:
            assert request.parameters["triton_enable_empty_final_response"].bool_param
            if request.model_name == "tensorrt_llm":
                yield self._stop_engine(request)
                continue
            assert request.model_name == "internvideo2_5"
            try:
                async for response in self._answer(request, context):
                    yield response
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    def _stop_engine(self, request: Any) -> Any:
        inputs = tensors(request)
        assert {"stop", "input_ids", "input_lengths", "request_output_len"} <= set(inputs), "mandatory at NVIDIA's"
        if "tensorrt_llm" in self.dead:
            return stream_response(error="Stub process 'tensorrt_llm_0_0' is not healthy.")
        self.stops.append(("tensorrt_llm", request.id))
        return stream_response(final=True)

    async def _answer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(tensors(request) | {"id": request.id})
        self.reached.set()
        for step in self.first_scripts.pop(0) if self.first_scripts else self.script:
            if step.gate is not None:
                while not step.gate.is_set():
                    await asyncio.sleep(0.005)
            if step.silent:
                await asyncio.Event().wait()
            if step.abort is not None:
                await context.abort(grpc.StatusCode[step.abort], "scripted")
            if step.cut:
                return
            if step.error is not None:
                yield stream_response(error=step.error)
                return
            values = {
                "output_ids": np.array(step.ids, np.int32).reshape(1, 1, -1),
                "sequence_length": np.array([[len(step.ids)]], np.int32),
                "num_input_tokens": np.array([[PROMPT_TOKENS]], np.int32),
            }
            if step.log_probs is not None:
                values["output_log_probs"] = np.array(step.log_probs, np.float32).reshape(1, 1, -1)
            if step.sequence is not None:
                values["sequence_index"] = np.array([[step.sequence]], np.int32)
            if step.top is not None:
                values["top_logprob_ids"] = np.array([[[i for i, _ in row] for row in step.top]], np.int32)
                values["top_logprobs"] = np.array([[[p for _, p in row] for row in step.top]], np.float32)
            yield stream_response(values)
        yield stream_response(final=True)
        await asyncio.sleep(self.lingers_s)


def tensors(request: Any) -> dict[str, Any]:
    """The request's inputs as plain values; `messages` parsed."""
    values: dict[str, Any] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.name in TEXTS:
            values[tensor.name] = deserialize_bytes_tensor(raw)[0].decode()
        elif tensor.datatype == "BYTES":
            values[tensor.name] = json.loads(deserialize_bytes_tensor(raw)[0])
        elif tensor.name == "video_bytes":
            values[tensor.name] = raw
        elif tensor.name in LISTS:
            values[tensor.name] = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape)[0].tolist()
        else:
            assert list(tensor.shape) == [1, 1]
            values[tensor.name] = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype))[0].item()
    return values


def stream_response(
    values: dict[str, np.ndarray[Any, Any]] | None = None, *, error: str | None = None, final: bool = False
) -> Any:
    if error is not None:
        return service_pb2.ModelStreamInferResponse(error_message=error)
    response = service_pb2.ModelInferResponse(model_name="internvideo2_5")
    response.parameters["triton_final_response"].bool_param = final
    for name, value in (values or {}).items():
        datatype = "FP32" if value.dtype == np.float32 else "INT32"
        response.outputs.add(name=name, datatype=datatype, shape=value.shape)
        response.raw_output_contents.append(value.tobytes())
    return service_pb2.ModelStreamInferResponse(infer_response=response)


PIECES = ["Hello", "▁world", "▁two", "▁red", "▁pandas", ".", "E", "N", "D", "红", "熊猫", "\N{REPLACEMENT CHARACTER}"]


def make_tokenizer() -> Tokenizer:
    """Special tokens 0-3, the 256 bytes from 4 on, then `PIECES`."""
    tokens = ["<unk>", "<s>", "</s>", "<|im_end|>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(tokens[:4])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def piece(text: str) -> int:
    return 4 + 256 + PIECES.index(text)


def byte_ids(data: bytes) -> list[int]:
    return [4 + byte for byte in data]


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def running(fake: FakeTriton, folder: Path, **settings: Any) -> Iterator[str]:
    """The fake and an adapter before it; gives the adapter's base URL."""
    tokenizer = folder / "tokenizer.json"
    make_tokenizer().save(str(tokenizer))
    tokenizer.with_name("config.json").write_text(json.dumps({"build_config": {"max_seq_len": CONTEXT_LENGTH}}))
    thread = LoopThread()

    async def start() -> tuple[grpc.aio.Server, uvicorn.Server, asyncio.Task[None]]:
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
        fake.port = port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            app = create_app(AdapterSettings(triton=f"127.0.0.1:{port}", tokenizer=tokenizer, **settings))
        except BaseException:
            await server.stop(None)
            raise
        config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1)
        adapter = uvicorn.Server(config)
        task = asyncio.ensure_future(adapter._serve())  # serve() would take the process's signal handlers
        while not adapter.started:
            await asyncio.sleep(0.005)
        return server, adapter, task

    async def stop() -> None:
        adapter.should_exit = True
        await task
        await server.stop(None)

    try:
        server, adapter, task = thread.submit(start()).result(30)
    except BaseException:
        thread.close()  # else its loop keeps the whole run from ending
        raise
    try:
        host, port = adapter.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        thread.submit(stop()).result(10)
        thread.close()
