"""Sampling per request inside one batch, by TensorRT-LLM's rules.

The manager itself knows temperature, top-k and top-p only, with one random state for all. Here one processor does everything
for each row and ends in Gumbel noise from the request's own generator, so the manager's plain argmax draws a sample (Gumbel-max
trick), greedy and sampled requests share a batch, and a seed's answer never depends on its neighbours.

The rules are those of TensorRT-LLM's kernels (``cpp/tensorrt_llm/kernels``):

* A grammar's mask first of all (``guidedDecoder.cpp`` sets it on the model's own logits).
* ``penaltyKernels.cu``: the embedding bias, temperature, then for each token that occurs in prompt **or** output repetition
  (divides a positive score, multiplies a negative one), presence (once) and frequency (times its occurrences), then the end id's
  ban up to ``min_tokens``. Virtual tokens are not counted (ids >= vocab_size are skipped there too).
* ``banBadWords.cu``: after that; a word's first tokens may stand in the prompt.
* ``samplingTopKKernels.cu``: top-k, then top-p of what is left. (min-p, which the backend's interface lacks, stands before them,
  as vLLM has it.) The log probability of a token is that of the full distribution after the steps above and before top-k and
  top-p, "the same way as OpenAI does"; its ``output_log_probs`` are so only with the model parameter ``normalize_log_probs`` =
  false (true makes every greedy token's 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor

from .grammar import GrammarError
from .sampling_params import SamplingParams, Word
from .sequence_state import SequenceState

_COLDEST = 1e-30  # scores divided by less would be infinite, several of them


class Sampler:
    """Draws one answer's tokens.

    Args:
        sequence: The answer; log probabilities, its end by the grammar and failures are noted there.
    """

    def __init__(self, sequence: SequenceState) -> None:
        self._sequence = sequence
        self._generator: torch.Generator | None = None
        self._bias: torch.Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Sampler:
        return self  # see SequenceState

    @property
    def plain(self) -> bool:
        """Whether the scores stay as they are."""
        return self._sequence.plain

    def process(self, scores: torch.Tensor, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
        """Scores [vocab] float32 of the next token -> scores whose argmax is the token to take."""
        sequence, sampling = self._sequence, self._sequence.params
        if sequence.failure is not None:
            return scores
        try:
            scores = self._guided(scores, output)
        except GrammarError as error:
            sequence.failure = str(error)
            return scores
        if sampling.embedding_bias is not None:
            if self._bias is None:
                self._bias = torch.from_numpy(sampling.embedding_bias).to(scores.device)
            scores = scores + self._bias
        if sampling.temperature not in (0.0, 1.0):
            scores = scores / max(sampling.temperature, _COLDEST)
        scores = _penalise(scores, sampling, prompt, output)
        if len(output) < sampling.min_tokens and 0 <= sampling.end_id < scores.shape[0]:
            held = scores.index_fill(0, torch.tensor([sampling.end_id], device=scores.device), -torch.inf)
            if sequence.grammar is None or bool(held.isfinite().any()):  # where the grammar leaves the end alone, it ends
                scores = held
        if sampling.bad_words:
            scores = _ban(scores, sampling.bad_words, [*prompt, *output])
        if sequence.grammar is not None or sampling.embedding_bias is not None:
            if not bool(scores.isfinite().any()):
                sequence.failure = "no token is left: what the request bans and what it asks for exclude each other"
                return scores
        full = scores
        if not sampling.greedy:
            scores = _keep_min_p(scores, sampling.min_p)
            scores = _keep_top_k(scores, sampling.top_k or 0)
            scores = _keep_top_p(scores, 1.0 if sampling.top_p is None else sampling.top_p)
            scores = scores + _gumbel_noise(scores, self._random(scores.device))
        if sampling.wants_log_probs:
            self._note(full.log_softmax(dim=0), int(scores.argmax()))
        return scores

    def _guided(self, scores: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        grammar = self._sequence.grammar
        if grammar is None or self._sequence.complete_at is not None:
            return scores
        allowed = grammar.allowed(output)
        if allowed is None:
            self._sequence.complete_at = len(output)
            return scores  # whatever is drawn now is not shown
        return scores.masked_fill(torch.from_numpy(~allowed).to(scores.device), -torch.inf)

    def _random(self, device: torch.device) -> torch.Generator:
        """The answer's own random state."""
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self._sequence.params.seed)
        return self._generator

    def _note(self, log_probs: torch.Tensor, token: int) -> None:
        self._sequence.log_probs.append(float(log_probs[token]))
        if count := self._sequence.params.num_top_logprobs:
            values, ids = log_probs.topk(min(count, len(log_probs)))
            ids = torch.where(values.isfinite(), ids, -1)
            self._sequence.top_logprobs.append((ids.cpu().numpy().astype(np.int32), values.cpu().numpy().astype(np.float32)))


def _penalise(scores: torch.Tensor, sampling: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
    if (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.0, 0.0, 0.0):
        return scores
    vocab = scores.shape[0]
    seen = torch.tensor([token for token in (*prompt, *output) if token < vocab], dtype=torch.int64, device=scores.device)
    counts = torch.zeros_like(scores).index_add_(0, seen, torch.ones_like(seen, dtype=scores.dtype))  # [vocab]
    repeated = torch.where(scores < 0, scores * sampling.repetition_penalty, scores / sampling.repetition_penalty)
    scores = torch.where(counts > 0, repeated - sampling.presence_penalty, scores)
    return scores - sampling.frequency_penalty * counts


def _ban(scores: torch.Tensor, bad_words: Sequence[Word], tokens: list[int]) -> torch.Tensor:
    vocab = scores.shape[0]
    matched = (word[-1] for word in bad_words if len(word) == 1 or tuple(tokens[1 - len(word) :]) == word[:-1])
    banned = [token for token in matched if 0 <= token < vocab]
    if not banned:
        return scores
    return scores.index_fill(0, torch.tensor(banned, device=scores.device), -torch.inf)


def _keep_min_p(scores: torch.Tensor, min_p: float) -> torch.Tensor:
    if min_p <= 0.0:
        return scores
    return scores.masked_fill(scores < scores.max() + math.log(min_p), -torch.inf)


def _keep_top_k(scores: torch.Tensor, top_k: int) -> torch.Tensor:
    if not 0 < top_k < scores.shape[0]:
        return scores
    return scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf)


def _keep_top_p(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    if top_p >= 1.0:
        return scores
    ordered, index = scores.sort(descending=True)
    probabilities = ordered.softmax(dim=0)
    beyond = probabilities.cumsum(dim=0) - probabilities >= top_p  # the first token is always kept
    return scores.index_fill(0, index[beyond], -torch.inf)


def _gumbel_noise(scores: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    uniform = torch.rand(scores.shape, generator=generator, device=scores.device, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    return -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log().to(scores.dtype)


class RequestSampler(ContinuousBatchingLogitsProcessor):
    """Applies each answer's :class:`Sampler` to its row of the manager's scores.

    Needs its synchronous mode, without its CUDA graphs.
    """

    supported_kwargs: dict[str, type] = {"sampler": Sampler}  # noqa: RUF012 (the base class's form)
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._rows: list[Any] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """The arguments travel beside the tensors, so there is nothing to fill in."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Remember whose rows the next scores are."""
        self._rows = [future.state for future in requests_with_new_token]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocab] -> the same with each request's settings applied."""
        for row, state in enumerate(self._rows):
            sampler: Sampler = state.logit_processor_kwargs["sampler"]
            if not sampler.plain:
                scores[row] = sampler.process(scores[row], state.initial_tokens, state.generated_tokens)
        return scores
