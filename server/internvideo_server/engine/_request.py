"""A generation request as NVIDIA's ``tensorrtllm`` backend reads it: tensors in, checked values out.

Names, shapes, defaults and refusal texts are the backend's (TensorRT-LLM ``triton_backend/inflight_batcher_llm/src/utils.cc``,
``cpp/tensorrt_llm/executor/{requestImpl.h,samplingConfig.cpp,executorImpl.cpp}``, ``batch_manager/llmRequest.cpp``), so that a
client sees the same from both engines. Stricter in one way: what would stop this engine or end in nonsense without a word there
(a negative id, an input that only NVIDIA's engine knows) is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ..limits import EngineLimits
from ._sampling import Sampling, Word

# Read by the backend nowhere, or only for other models and for several prompts in one request.
_WITHOUT_EFFECT = {"pad_id", "input_lengths", "prompt_vocab_size"}
# Fine as long as they ask for nothing that this engine lacks.
_ONLY_VALUE = {"beam_width": 1, "num_return_sequences": 1, "return_perf_metrics": False}
_KNOWN = {
    *_WITHOUT_EFFECT,
    *_ONLY_VALUE,
    *("input_ids", "request_output_len", "end_id", "stop_words_list", "bad_words_list", "prompt_table_extra_ids"),
    *("temperature", "runtime_top_k", "runtime_top_p", "seed", "min_tokens"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("streaming", "stop", "exclude_input_in_output", "return_log_probs", "return_num_input_tokens"),
    *("guided_decoding_guide_type", "guided_decoding_guide"),
}
_GUIDE_TYPES = {"json", "json_schema", "regex", "ebnf_grammar"}

Array = npt.NDArray[Any]
Scalar = TypeVar("Scalar", int, float, bool)


class RefusedRequestError(ValueError):
    """The request cannot be taken; the text is the one NVIDIA's backend answers with where it has one."""


@dataclass
class GenerationRequest:
    """One checked request. Ids are the client's: those >= vocab_size are rows of ``table``."""

    input_ids: npt.NDArray[np.int32]  # [N]
    extra_ids: npt.NDArray[np.uint64] | None  # [N]
    table: torch.Tensor  # [rows, hidden]
    max_new_tokens: int
    stop_words: list[Word]
    sampling: Sampling
    streaming: bool
    exclude_input: bool
    return_num_input_tokens: bool


def parse_request(
    tensors: Mapping[str, Array], table: torch.Tensor | None, limits: EngineLimits, *, exclude_input: bool, reuse: bool
) -> GenerationRequest:
    """Check one request.

    Args:
        tensors: The request's host tensors by name, with the leading batch dimension of 1.
        table: ``prompt_embedding_table`` [1, rows, hidden] or None.
        limits: The engine's limits.
        exclude_input: The model parameter ``exclude_input_in_output``; the request's own value wins.
        reuse: The model parameter ``enable_kv_cache_reuse``.

    Raises:
        RefusedRequestError: With the reason.
    """
    input_ids = _input_ids(tensors)
    _refuse_unsupported(tensors)
    output_len = _scalar(tensors, "request_output_len", int)
    if output_len is None:
        raise RefusedRequestError("request_output_len is not present in the request")
    if output_len <= 0:
        raise RefusedRequestError(f"Assertion failed: mMaxNewTokens > 0 (request_output_len is {output_len})")
    sampling, stop_words = _sampling(tensors, limits), _words(tensors, "stop_words_list")
    if len(input_ids) > limits.max_seq_len - 1:
        raise _refused_by_executor(
            f"Prompt length ({len(input_ids)}) exceeds maximum input length ({limits.max_seq_len - 1}). "
            "Set log level to info and check TRTGptModel logs for how maximum input length is set"
        )
    extra_ids = tensors["prompt_table_extra_ids"].reshape(-1) if "prompt_table_extra_ids" in tensors else None
    if extra_ids is not None and len(extra_ids) != len(input_ids):
        extra_ids = None  # dropped without a word, as in the backend
    if table is not None:
        table = _table(table, limits)
        if extra_ids is None and reuse:
            raise _refused_by_executor("Input token extra ids must be provided when enabling kv cache reuse with prompt table")
    exclude = _scalar(tensors, "exclude_input_in_output", bool)
    return GenerationRequest(
        input_ids=input_ids,
        extra_ids=extra_ids,
        table=torch.zeros((0, limits.hidden_size)) if table is None else table,
        max_new_tokens=min(output_len, limits.max_seq_len - len(input_ids)),  # clamped, as in the backend
        stop_words=stop_words,
        sampling=sampling,
        streaming=_scalar(tensors, "streaming", bool) or False,
        exclude_input=exclude_input if exclude is None else exclude,
        return_num_input_tokens=_scalar(tensors, "return_num_input_tokens", bool) or False,
    )


def _refused_by_executor(text: str) -> RefusedRequestError:
    return RefusedRequestError(f"Encountered an error when fetching new request: {text}")


def _input_ids(tensors: Mapping[str, Array]) -> npt.NDArray[np.int32]:
    """All ids, as in the backend: it reads ``input_lengths`` only where one request carries several prompts."""
    if "input_ids" not in tensors:
        raise RefusedRequestError("input_ids or encoder_input_features is not present in the request.")
    ids = tensors["input_ids"]
    if ids.ndim > 1 and ids.shape[0] > 1:
        raise RefusedRequestError(f"the embedded engine takes one prompt a request, not {ids.shape[0]}")
    if not ids.size:
        raise RefusedRequestError("Assertion failed: !mInputTokenIds.empty()")
    if ids.min() < 0:
        raise RefusedRequestError(f"input_ids must not be negative, got {ids.min()}")
    return ids.reshape(-1).astype(np.int32)


def _refuse_unsupported(tensors: Mapping[str, Array]) -> None:
    for name in sorted(tensors.keys() - _KNOWN):
        raise RefusedRequestError(f"the embedded engine does not support the input {name}")
    for name, value in _ONLY_VALUE.items():
        if (tensors.get(name, np.array(value)) != value).any():
            raise RefusedRequestError(f"the embedded engine supports no other {name} than {value}")
    guide_type = tensors.get("guided_decoding_guide_type")
    # An unknown type is ignored without a word, as in the backend.
    if guide_type is not None and guide_type.size and _text(guide_type.item(0)) in _GUIDE_TYPES:
        raise _refused_by_executor(
            "Request is specified with GuidedDecodingParams, but GuidedDecoder is not setup. "
            "Please provide a valid GuidedDecodingConfig to setup GuidedDecoder."
        )


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _table(table: torch.Tensor, limits: EngineLimits) -> torch.Tensor:
    table = table.reshape(-1, table.shape[-1])
    if len(table) > limits.max_rows:
        raise RefusedRequestError(
            f"Prompt vocab size {len(table)} is larger than max prompt vocab size of {limits.max_rows}. Max prompt vocab size is "
            "computed from max_prompt_embedding_table_size / max_batch_size."
        )
    if table.dtype != getattr(torch, limits.dtype):
        raise RefusedRequestError("Request embedding table data type doesn't match model weight data type.")
    if table.shape[1] != limits.hidden_size:
        raise RefusedRequestError(f"prompt_embedding_table has {table.shape[1]} columns, the engine {limits.hidden_size}")
    return table


def _sampling(tensors: Mapping[str, Array], limits: EngineLimits) -> Sampling:
    end_id = _scalar(tensors, "end_id", int)
    end_id = -1 if end_id is None else end_id
    if not -1 <= end_id < limits.vocab_size:
        raise _refused_by_executor(f"EndId ({end_id}) is not within acceptable range [-1, {limits.vocab_size}).")
    top_p = _scalar(tensors, "runtime_top_p", float)
    seed = _scalar(tensors, "seed", int)
    sampling = Sampling(
        end_id=end_id,
        temperature=_or(_scalar(tensors, "temperature", float), 1.0),
        top_k=_scalar(tensors, "runtime_top_k", int),
        top_p=top_p if top_p is not None and top_p > 0 else None,  # a value <= 0 is dropped, as in the backend
        seed=secrets.randbits(64) if seed is None else seed,
        repetition_penalty=_or(_scalar(tensors, "repetition_penalty", float), 1.0),
        presence_penalty=_or(_scalar(tensors, "presence_penalty", float), 0.0),
        frequency_penalty=_or(_scalar(tensors, "frequency_penalty", float), 0.0),
        min_tokens=_or(_scalar(tensors, "min_tokens", int), 0),
        bad_words=_words(tensors, "bad_words_list"),
        return_log_probs=_scalar(tensors, "return_log_probs", bool) or False,
    )
    for check, fine in (
        ("topK.value() >= 0", (sampling.top_k or 0) >= 0),
        ("topP.value() <= 1.f", (sampling.top_p or 1.0) <= 1),
        ("temperature.value() >= 0.f", sampling.temperature >= 0),
        ("minTokens.value() >= 0", sampling.min_tokens >= 0),
        ("repetitionpenalty.value() > 0.f", sampling.repetition_penalty > 0),
    ):
        if not fine:
            raise RefusedRequestError(f"Assertion failed: {check}")
    return sampling


def _words(tensors: Mapping[str, Array], name: str) -> list[Word]:
    """[1, 2, L]: row 0 all tokens, row 1 the exclusive end of each word, padded with -1 (``convertWordList``)."""
    if name not in tensors:
        return []
    if tensors[name].size % 2:
        raise RefusedRequestError(f"Sparse list must not have odd length: {name}")
    tokens, offsets = (row.tolist() for row in tensors[name].reshape(2, -1))
    words: list[Word] = []
    begin = 0
    ends = offsets[: offsets.index(-1)] if -1 in offsets else offsets
    if any(end != -1 for end in offsets[len(ends) :]):
        raise RefusedRequestError(f"Sparse list must not have additional -1s: {name}")
    for end in ends:
        if end > len(tokens):
            raise RefusedRequestError(f"Sparse list must not have out-of-bound offsets: {name}")
        if end <= begin:
            raise RefusedRequestError(f"Sparse list must not have non-increasing offsets: {name}")
        words.append(tuple(tokens[begin:end]))
        begin = end
    return words


def _scalar(tensors: Mapping[str, Array], name: str, kind: type[Scalar]) -> Scalar | None:
    if name not in tensors:
        return None
    if tensors[name].size != 1:
        raise RefusedRequestError(f"Invalid size for tensor {name}")
    return kind(tensors[name].item())


def _or(value: Scalar | None, default: Scalar) -> Scalar:
    return default if value is None else value
