"""Triton's gRPC messages, packed and read without tritonclient's own objects: they cost more than the tokens that they carry."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

ENSEMBLE = "internvideo2_5"
INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"
STREAM_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"

_RAW_CONTENTS = bytes([7 << 3 | 2])  # ModelInferRequest.raw_input_contents, length-delimited
_INT32, _FLOAT32 = "i", "f"
_TRITON_TYPE = {np.dtype(name): np_to_triton_dtype(np.dtype(name)) for name in ("bool", "i4", "i8", "u8", "f4", "O")}


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What one response of the stream brought to one answer: 0 or more new tokens.

    Attributes:
        token_ids: New tokens; the end token is never among them, a stop word's token may be.
        log_probs: One for each new token, where they were asked for.
        top: For each new token the likeliest ones with their log probabilities, where they were asked for.
        prompt_tokens: Length of the prompt, visual tokens included; None where the response does not say.
        sequence: Which of the answers, from 0.
    """

    token_ids: list[int]
    log_probs: Sequence[float] = ()
    top: Sequence[Sequence[tuple[int, float]]] = ()
    prompt_tokens: int | None = None
    sequence: int = 0


def request_message(model: str, request_id: str, tensors: Mapping[str, npt.NDArray[Any]]) -> Any:
    """A ModelInferRequest."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, value in tensors.items():
        datatype = _TRITON_TYPE[value.dtype]
        request.inputs.add(name=name, datatype=datatype, shape=value.shape)
        content = value.tobytes() if datatype != "BYTES" else b"".join(map(_with_length, value.flat))
        request.raw_input_contents.append(content)
    return request


def serialized(request: Any) -> bytes:
    """The request's bytes; one that is serialised already passes."""
    return request if isinstance(request, bytes) else request.SerializeToString()


def with_media(request: Any, media: Sequence[Sequence[bytes]]) -> bytes:
    """The request with the inputs ``video_sizes`` and ``video_bytes``, serialised; large media are copied once.

    Args:
        request: A ModelInferRequest.
        media: Each medium in pieces.
    """
    request, whole = service_pb2.ModelInferRequest(), request
    request.CopyFrom(whole)
    sizes = np.array([[sum(map(len, pieces)) for pieces in media]], np.int64)
    total = int(sizes.sum())
    request.inputs.add(name="video_sizes", datatype="INT64", shape=sizes.shape)
    request.raw_input_contents.append(sizes.tobytes())
    request.inputs.add(name="video_bytes", datatype="UINT8", shape=[1, total])
    # Fields of protobuf may follow one another in any order, so the last of a list can be appended to the message.
    return b"".join([request.SerializeToString(), _RAW_CONTENTS, _varint(total), *(p for pieces in media for p in pieces)])


def with_files(request: Any, urls: Sequence[str]) -> Any:
    """A copy of the request with the input ``video_files``.

    Args:
        request: A ModelInferRequest.
        urls: ``file://`` URLs that preprocessing may open.
    """
    request, whole = service_pb2.ModelInferRequest(), request
    request.CopyFrom(whole)
    content = json.dumps(list(urls)).encode()
    request.inputs.add(name="video_files", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(_with_length(content))
    return request


def with_region(request: Any, sizes: Sequence[int], region: str) -> Any:
    """The request with the inputs ``video_sizes`` and ``video_bytes``, whose content lies in a shared-memory region.

    Args:
        request: A ModelInferRequest.
        sizes: Bytes of each medium, one after another from the region's start.
        region: The name that it is registered by.
    """
    told = np.array([sizes], np.int64)
    request.inputs.add(name="video_sizes", datatype="INT64", shape=told.shape)
    request.raw_input_contents.append(told.tobytes())
    media = request.inputs.add(name="video_bytes", datatype="UINT8", shape=[1, sum(sizes)])
    media.parameters["shared_memory_region"].string_param = region
    media.parameters["shared_memory_byte_size"].int64_param = sum(sizes)
    return request


def streamed(request: Any) -> Any:
    """The request, marked so that Triton tells the end of a stream whose last response came empty."""
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def token_batch(response: Any) -> TokenBatch:
    """What a ModelInferResponse of the ensemble says."""
    raw = {output.name: content for output, content in zip(response.outputs, response.raw_output_contents, strict=True)}
    ids = [i for i in _values(raw.get("output_ids"), _INT32) if i >= 0]  # -1 pads
    # In a stream, log probs are all those so far, while ids are the new ones.
    log_probs = _values(raw.get("output_log_probs"), _FLOAT32)
    prompt_tokens = _values(raw.get("num_input_tokens"), _INT32)
    sequence = _values(raw.get("sequence_index"), _INT32)
    return TokenBatch(
        ids,
        log_probs[len(log_probs) - len(ids) :] if log_probs else (),
        _top(raw, len(ids)) if "top_logprob_ids" in raw else (),
        prompt_tokens[0] if prompt_tokens else None,
        sequence[0] if sequence else 0,
    )


def _top(raw: Mapping[str, bytes], count: int) -> list[list[tuple[int, float]]]:
    ids, values = _values(raw["top_logprob_ids"], _INT32), _values(raw.get("top_logprobs"), _FLOAT32)
    if not count or len(ids) != len(values) or len(ids) % count:
        return []
    width = len(ids) // count
    rows = [list(zip(ids[at : at + width], values[at : at + width], strict=True)) for at in range(0, len(ids), width)]
    return [[(i, value) for i, value in row if i >= 0] for row in rows]


def _with_length(content: bytes) -> bytes:
    """An element of a BYTES tensor."""
    return len(content).to_bytes(4, "little") + content


def _values(raw: bytes | None, kind: str) -> list[Any]:
    """A tensor's values; ``kind``: of `array`, whose bytes are in the machine's order, as Triton's are."""
    return array(kind, raw).tolist() if raw else []


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
