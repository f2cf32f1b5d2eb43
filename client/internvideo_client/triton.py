"""Async client of the ensemble: one gRPC stream for each request, token ids as they come, and an end that ends the work.

The connection itself, and how work is ended: `_connection.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferResult, service_pb2

from ._connection import CHAIN, ENGINE, TritonConnection
from ._generation import Generation
from ._media_files import SentMedia
from ._sampling import Guide, SamplingParams
from ._wire import ENSEMBLE, TokenBatch, request_message, with_region
from .errors import ApiError, bad_request, from_code, from_triton, reason_of
from .media_region import MediaRegion

__all__ = ["CHAIN", "ENSEMBLE", "Generation", "Guide", "SamplingParams", "TokenBatch", "TritonChatClient"]

TRITON = "tritonserver"

_DIED = "a part of the server died while it worked on this request, and is being started again"

_OUTPUTS = ("output_ids", "sequence_length", "num_input_tokens")

_SECRET_HEADER = "triton-grpc-protocol-internvideo"  # noqa: S105 - a header's name
_PROBE_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class TritonChatClient(TritonConnection):
    """Client of one Triton server; use as an async context manager.

    Args:
        url: ``HOST:PORT`` of Triton's gRPC endpoint.
        request_timeout_s: Longest time for a whole request. The models learn it too, and end their part of the work by it.
        first_token_timeout_s: Longest silence before the first response (fetching, decoding and the tower take their time);
            None: as long as the whole request may take.
        inactivity_timeout_s: Longest silence between two responses. A dead engine says nothing, so silence is its only sign.
        media_folder: Where large media of requests are put for `preprocessing`, which must be allowed to open files there; None:
            they are sent.
    """

    def __init__(
        self,
        url: str,
        *,
        request_timeout_s: float = 300.0,
        first_token_timeout_s: float | None = None,
        inactivity_timeout_s: float = 60.0,
        media_folder: Path | None = None,
    ) -> None:
        super().__init__(
            url,
            request_timeout_s=request_timeout_s,
            first_token_timeout_s=first_token_timeout_s,
            inactivity_timeout_s=inactivity_timeout_s,
        )
        self._media_folder = media_folder

    def generate(
        self,
        messages: list[dict[str, Any]] | dict[str, Any],
        sampling: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        media: Sequence[list[bytes]] = (),
        region: MediaRegion | None = None,
        cache_salt: str | None = None,
    ) -> Generation:
        """Ask the ensemble; ``async with`` the result, then iterate over it.

        Args:
            messages: The conversation in OpenAI's form, or ``{"prompt": TEXT}`` for a text without the chat template.
            sampling: How to generate; greedy by default.
            request_id: A unique id, under which the work can be stopped; made here by default.
            media: Content of files, in pieces each; `messages` call them ``attachment:0``, ``attachment:1``, ...
            region: The same in shared memory, in the place of `media`; see :meth:`shared`.
            cache_salt: Only requests with the same one share cached frames and embeddings.

        Raises:
            ApiError: `messages` cannot be written as JSON.
        """
        sampling = sampling or SamplingParams()
        tensors = {"messages": np.array([[_to_json(messages)]], dtype=np.object_)} | sampling.tensors()
        if cache_salt:
            tensors["cache_salt"] = np.array([[cache_salt.encode()]], dtype=np.object_)
        request = request_message(ENSEMBLE, request_id or uuid.uuid4().hex, tensors)
        wanted = [
            *_OUTPUTS,
            *["output_log_probs"] * sampling.log_probs,
            *["sequence_index"] * (sampling.num_return_sequences > 1),
        ]
        for name in wanted + ["top_logprob_ids", "top_logprobs"] * bool(sampling.num_top_logprobs):
            request.outputs.add(name=name)
        request.parameters["timeout"].int64_param = round(1e6 * self.request_timeout_s)  # Triton's own: microseconds
        if region is not None:
            request = with_region(request, region.sizes, region.name)
        return Generation(self, request, SentMedia(media, self._media_folder))

    @asynccontextmanager
    async def shared(self, region: MediaRegion, secret: str) -> AsyncIterator[MediaRegion]:
        """Let Triton read a region of shared memory while the context lasts.

        Raises:
            grpc.RpcError: Triton is on another machine, knows another secret, or may not read it.
        """
        metadata = ((_SECRET_HEADER, secret),)
        register = service_pb2.SystemSharedMemoryRegisterRequest(name=region.name, key=region.key, byte_size=sum(region.sizes))
        await self.stub.SystemSharedMemoryRegister(register, metadata=metadata, timeout=_PROBE_TIMEOUT_S)
        try:
            yield region
        finally:
            forget = service_pb2.SystemSharedMemoryUnregisterRequest(name=region.name)
            with contextlib.suppress(grpc.RpcError):  # then it goes with the server
                await self.stub.SystemSharedMemoryUnregister(forget, metadata=metadata, timeout=_PROBE_TIMEOUT_S)

    def on_deaths(self, names: set[str]) -> None:
        """Programs or models died: what waits for them hears of it now, not after a silence."""
        for generation in list(self.running):
            # Once it is answered, the engine alone is at work.
            if names & ({ENGINE, TRITON} if generation.answered else {*CHAIN, TRITON}):
                generation.fail(from_code("UNAVAILABLE", _DIED), lost=True)

    def end_all(self, error: ApiError) -> None:
        """End everything under way with this error."""
        for generation in list(self.running):
            generation.fail(error, lost=False)

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
                ready = (await self.stub.ServerReady(service_pb2.ServerReadyRequest())).ready
                for asked in (ENSEMBLE, *CHAIN) if ready else ():
                    ready = ready and (await self.stub.ModelReady(service_pb2.ModelReadyRequest(name=asked))).ready
                for asked in CHAIN if ready else ():
                    await self._stop_model(asked, probe_id)
        except (TimeoutError, grpc.RpcError, ApiError) as error:
            _log.warning("readiness probe of %s failed: %s", asked, reason_of(error))
            raise from_code("UNAVAILABLE", f"{asked} does not answer") from error
        if not ready:
            raise from_code("UNAVAILABLE", "not all models are loaded")

    async def inputs(self, model: str = ENSEMBLE) -> set[str]:
        """Names of the inputs that a model takes.

        Raises:
            grpc.RpcError: The server is away, or has no such model.
        """
        metadata = await self.stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=model), timeout=_PROBE_TIMEOUT_S)
        return {each.name for each in metadata.inputs}

    async def parameters(self, model: str, secret: str) -> dict[str, str]:
        """A model's parameters.

        Args:
            model: Its name.
            secret: Of the run: model configurations are told to those alone who know it.

        Raises:
            grpc.RpcError: The server is away, or knows another secret.
        """
        response = await self.stub.ModelConfig(
            service_pb2.ModelConfigRequest(name=model), metadata=((_SECRET_HEADER, secret),), timeout=_PROBE_TIMEOUT_S
        )
        return {name: value.string_value for name, value in response.config.parameters.items()}

    async def frames(
        self, messages: list[dict[str, Any]], media: Sequence[list[bytes]], salt: str | None
    ) -> list[dict[str, Any]]:
        """The sampled frames of the one medium of a conversation: ``{"time", "image"}``, seconds and a small JPEG.

        Raises:
            ApiError: What `preprocessing` reported.
        """
        tensors = {"messages": np.array([[_to_json(messages)]], np.object_), "frames_only": np.array([[True]])}
        if salt:
            tensors["cache_salt"] = np.array([[salt.encode()]], np.object_)
        request = request_message("preprocessing", f"frames-{uuid.uuid4().hex}", tensors)
        request.outputs.add(name="preview")
        sent = SentMedia(media, self._media_folder)
        try:
            response = await self.infer(await sent.payload(request), timeout=self.request_timeout_s)
        except grpc.RpcError as failure:
            raise from_triton(failure) from failure
        finally:
            sent.close()
        found: list[dict[str, Any]] = json.loads(InferResult(response).as_numpy("preview").reshape(-1)[0])
        return found

    async def prepare(self, messages: list[dict[str, Any]] | dict[str, Any]) -> list[int]:
        """The token ids of a conversation without media, as the engine would be given them.

        Raises:
            ApiError: What `preprocessing` reported.
        """
        tensors = {"messages": np.array([[_to_json(messages)]], dtype=np.object_)}
        request = request_message(
            "preprocessing", f"tokens-{uuid.uuid4().hex}", tensors | {"request_output_len": np.array([[-1]], np.int32)}
        )
        request.outputs.add(name="input_ids")
        try:
            response = await self.stub.ModelInfer(request, timeout=self.request_timeout_s)
        except grpc.RpcError as failure:
            raise from_triton(failure) from failure
        ids: list[int] = InferResult(response).as_numpy("input_ids").reshape(-1).tolist()
        return ids


def _to_json(messages: list[dict[str, Any]] | dict[str, Any]) -> bytes:
    try:
        return json.dumps(messages, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # NaN, a lone surrogate, an endless nest
        raise bad_request(f"messages is not plain JSON text: {error}", "messages") from error
