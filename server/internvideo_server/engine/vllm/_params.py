"""A request's sampling settings as vLLM's.

What vLLM's constructor refuses though its sampler takes it (temperatures above 2, penalties beyond +-2) is set afterwards.
"""

from __future__ import annotations

from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from internvideo_server.engine.grammar import Guide, GuideType
from internvideo_server.engine.request import GenerationRequest
from internvideo_server.engine.sampling_params import SamplingParams as Wanted
from internvideo_server.errors import invalid

from ._bias import bias_fields

_MOST_BAD_WORDS = 128  # vLLM's
_GREATEST_SEED = 2**63 - 1  # of torch's generators


def vllm_params(request: GenerationRequest, wanted: Wanted, vocab_size: int, end_token: int) -> Any:
    """VLLM's ``SamplingParams``.

    Args:
        request: The request.
        wanted: The settings of this one of its answers.
        vocab_size: The engine's.
        end_token: The model's own end, which vLLM's guides end with.

    Raises:
        ValueError: It asks for more than vLLM takes.
    """
    if len(wanted.bad_words) > _MOST_BAD_WORDS:
        raise ValueError(invalid(f"{len(wanted.bad_words)} bad words, vLLM takes {_MOST_BAD_WORDS}", "bad_words").text)
    stops = {word[0] for word in request.stop_words if len(word) == 1} | {wanted.end_id}
    if request.guide is not None:
        stops.add(end_token)
    # The likeliest token has at least 1 / vocab_size, so it alone is left; and of equal ones the first, as with greedy.
    greedy = wanted.greedy or (wanted.top_p is not None and wanted.top_p * vocab_size <= 1)
    options: dict[str, Any] = {
        "max_tokens": request.max_new_tokens,
        "min_tokens": min(wanted.min_tokens, request.max_new_tokens),
        "ignore_eos": True,  # the request's end id is one of the stop ids; vLLM returns it, and `Generation` drops it
        "stop_token_ids": sorted(i for i in stops if 0 <= i < vocab_size),
        "repetition_penalty": wanted.repetition_penalty,
        "logprobs": max(wanted.num_top_logprobs, 0) if wanted.wants_log_probs else None,
        "detokenize": False,
        "output_kind": RequestOutputKind.DELTA,
        **bias_fields(wanted.embedding_bias),
    }
    if request.guide is not None:
        options["structured_outputs"] = _guide(request.guide)
    if greedy:
        options["temperature"] = 0.0
    else:
        options |= {"temperature": min(wanted.temperature, 2.0), "top_k": wanted.top_k or 0, "min_p": wanted.min_p}
        options |= {"top_p": 1.0 if wanted.top_p is None else wanted.top_p, "seed": wanted.seed & _GREATEST_SEED}
    params = SamplingParams(**options)
    params.skip_clone = True  # a clone is constructed, and so checked, again
    if not greedy:
        params.temperature = wanted.temperature
    params.presence_penalty, params.frequency_penalty = wanted.presence_penalty, wanted.frequency_penalty
    if wanted.bad_words:
        params._bad_words_token_ids = [list(word) for word in wanted.bad_words if all(0 <= i < vocab_size for i in word)]
    return params


def _guide(guide: Guide) -> Any:
    match guide.kind:
        case GuideType.JSON:
            return StructuredOutputsParams(json='{"type": "object"}')
        case GuideType.JSON_SCHEMA:
            return StructuredOutputsParams(json=guide.text)
        case GuideType.REGEX:
            return StructuredOutputsParams(regex=guide.text)
        case GuideType.EBNF_GRAMMAR:
            return StructuredOutputsParams(grammar=guide.text)
