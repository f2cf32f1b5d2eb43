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

from internvideo_server.errors import invalid
from internvideo_server.limits import EngineLimits

from .grammar import Guide, GuideType
from .sampling_params import MAX_TOP_LOGPROBS, SamplingParams, Word

# Read by the backend nowhere, or only for other models and for several prompts in one request.
_WITHOUT_EFFECT = {"pad_id", "input_lengths", "prompt_vocab_size"}
# Fine as long as they ask for nothing that this engine lacks.
_ONLY_VALUE = {"beam_width": 1, "return_perf_metrics": False}
_KNOWN = {
    *_WITHOUT_EFFECT,
    *_ONLY_VALUE,
    *("input_ids", "request_output_len", "end_id", "stop_words_list", "bad_words_list", "prompt_table_extra_ids"),
    *("num_return_sequences", "embedding_bias"),
    *("temperature", "runtime_top_k", "runtime_top_p", "min_p", "seed", "min_tokens"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("streaming", "stop", "exclude_input_in_output", "return_log_probs", "num_top_logprobs"),
    "return_num_input_tokens",
    *("guided_decoding_guide_type", "guided_decoding_guide"),
}
MAX_SEQUENCES = 16

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
    sampling: SamplingParams
    guide: Guide | None
    num_sequences: int
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
        guide=_guide(tensors),
        num_sequences=_num_sequences(tensors),
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


def _guide(tensors: Mapping[str, Array]) -> Guide | None:
    """An unknown type is refused, though the backend ignores it without a word."""
    kind = _text(tensors, "guided_decoding_guide_type")
    if kind is None:
        return None
    if kind not in list(GuideType):
        fault = f"the guide's type is one of {', '.join(GuideType)}, not {kind!r}"
        raise RefusedRequestError(invalid(fault, "guided_decoding_guide_type").text)
    text = _text(tensors, "guided_decoding_guide")
    if text is None and kind != GuideType.JSON:
        raise RefusedRequestError(invalid(f"a guide of the type {kind} is needed", "guided_decoding_guide").text)
    return Guide(GuideType(kind), "" if kind == GuideType.JSON else text or "")


def _text(tensors: Mapping[str, Array], name: str) -> str | None:
    if name not in tensors or not tensors[name].size:
        return None
    value = tensors[name].item(0)
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise RefusedRequestError(invalid(f"{name} is not UTF-8: {error}", name).text) from error


def _num_sequences(tensors: Mapping[str, Array]) -> int:
    count = _or(_scalar(tensors, "num_return_sequences", int), 1)
    if count < 1:
        raise RefusedRequestError("Assertion failed: numReturnSequences.value() > 0")
    if count > MAX_SEQUENCES:
        text = f"num_return_sequences is {count}, at most {MAX_SEQUENCES} are possible"
        raise RefusedRequestError(invalid(text, "num_return_sequences").text)
    return count


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


def _sampling(tensors: Mapping[str, Array], limits: EngineLimits) -> SamplingParams:
    end_id = _scalar(tensors, "end_id", int)
    end_id = -1 if end_id is None else end_id
    if not -1 <= end_id < limits.vocab_size:
        raise _refused_by_executor(f"EndId ({end_id}) is not within acceptable range [-1, {limits.vocab_size}).")
    top_p = _scalar(tensors, "runtime_top_p", float)
    seed = _scalar(tensors, "seed", int)
    sampling = SamplingParams(
        end_id=end_id,
        temperature=_or(_scalar(tensors, "temperature", float), 1.0),
        top_k=_scalar(tensors, "runtime_top_k", int),
        top_p=top_p if top_p is not None and top_p > 0 else None,  # a value <= 0 is dropped, as in the backend
        seed=secrets.randbits(64) if seed is None else seed,
        repetition_penalty=_or(_scalar(tensors, "repetition_penalty", float), 1.0),
        presence_penalty=_or(_scalar(tensors, "presence_penalty", float), 0.0),
        frequency_penalty=_or(_scalar(tensors, "frequency_penalty", float), 0.0),
        min_p=_or(_scalar(tensors, "min_p", float), 0.0),
        min_tokens=_or(_scalar(tensors, "min_tokens", int), 0),
        bad_words=_words(tensors, "bad_words_list"),
        embedding_bias=_bias(tensors, limits.vocab_size),
        return_log_probs=_scalar(tensors, "return_log_probs", bool) or False,
        num_top_logprobs=_or(_scalar(tensors, "num_top_logprobs", int), 0),
    )
    if not 0.0 <= sampling.min_p <= 1.0:
        raise RefusedRequestError(invalid(f"min_p must be within 0 .. 1, got {sampling.min_p}", "min_p").text)
    if not 0 <= sampling.num_top_logprobs <= MAX_TOP_LOGPROBS:
        text = f"num_top_logprobs must be within 0 .. {MAX_TOP_LOGPROBS}, got {sampling.num_top_logprobs}"
        raise RefusedRequestError(invalid(text, "num_top_logprobs").text)
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


def _bias(tensors: Mapping[str, Array], vocab_size: int) -> npt.NDArray[np.float32] | None:
    """[vocab_size]; -inf forbids a token."""
    if "embedding_bias" not in tensors:
        return None
    bias = tensors["embedding_bias"].reshape(-1).astype(np.float32)
    if len(bias) != vocab_size:
        text = f"embedding_bias has {len(bias)} values, the vocabulary {vocab_size} tokens"
        raise RefusedRequestError(invalid(text, "embedding_bias").text)
    if np.isnan(bias).any() or np.isposinf(bias).any() or np.isneginf(bias).all():
        raise RefusedRequestError(invalid("embedding_bias must be finite, or -inf where others are not", "embedding_bias").text)
    return bias


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
