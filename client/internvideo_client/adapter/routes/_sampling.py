"""A request's fields as the engine's sampling parameters."""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from internvideo_client.adapter._context import Context
from internvideo_client.adapter.generation import guide_of
from internvideo_client.errors import bad_request
from internvideo_client.protocol import GenerationFields
from internvideo_client.triton import SamplingParams

_NEVER = -1e9  # added to a logit; infinity would turn into NaN in penalties


def sampling_of(context: Context, body: GenerationFields, token_limit: int | None, top_logprobs: int | None) -> SamplingParams:
    """How to generate.

    Args:
        context: The adapter's.
        body: What was asked.
        token_limit: Most tokens of an answer.
        top_logprobs: Likeliest tokens to tell with each; None: no log probabilities at all.

    Raises:
        ApiError: A token id beyond the vocabulary, or a grammar that cannot be.
    """
    if body.prompt_logprobs is not None:
        raise bad_request("prompt_logprobs: no engine of this server tells them", "prompt_logprobs", "unsupported_parameter")
    vocab_size = context.engine.vocab_size
    for name in ("stop_token_ids", "allowed_token_ids"):
        if any(token_id >= vocab_size for token_id in getattr(body, name) or ()):
            raise bad_request(f"{name}: a token id is not below the vocabulary's size of {vocab_size}", name)
    best_of = body.best_of is not None and body.best_of > (body.n or 1)
    return SamplingParams(
        max_tokens=token_limit,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        # TensorRT-LLM takes 64 unsigned bits; OpenAI's seeds may be negative. Absent: another one each time.
        seed=secrets.randbits(64) if body.seed is None else body.seed % 2**64,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        min_tokens=body.min_tokens,
        num_return_sequences=body.sequences,
        log_probs=top_logprobs is not None or best_of,
        num_top_logprobs=top_logprobs or 0,
        embedding_bias=_bias(body, vocab_size),
        bad_words=[ids for word in body.bad_words or () for ids in _spellings(context, word)],
        stop_token_ids=body.stop_token_ids or (),
        ignore_eos=bool(body.ignore_eos),
        guide=guide_of(body),
    )


def _bias(body: GenerationFields, vocab_size: int) -> npt.NDArray[np.float32] | None:
    if not body.logit_bias and body.allowed_token_ids is None:
        return None
    bias = np.zeros(vocab_size, np.float32)
    if body.allowed_token_ids is not None:
        bias[:] = _NEVER
        bias[body.allowed_token_ids] = 0
    for name, value in (body.logit_bias or {}).items():
        if not name.isdecimal() or len(name) > 9:
            raise bad_request(f"logit_bias: {name[:20]!r} is not a token id", "logit_bias")
        if int(name) < vocab_size:
            bias[int(name)] += value
        elif value > 0:  # a token that does not exist never comes: what forbids it is fulfilled
            raise bad_request(f"logit_bias: token {name[:20]} is beyond the vocabulary of {vocab_size}", "logit_bias")
    return bias


def _spellings(context: Context, word: str) -> list[list[int]]:
    """The word at the begin of a text and behind a blank."""
    spelled = [context.tokenizer.encode(text, add_special_tokens=False).ids for text in (word, f" {word.lstrip()}")]
    return [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in spelled if ids)]
