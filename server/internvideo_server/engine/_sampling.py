"""Sampling per request inside one batch, by TensorRT-LLM's rules.

The manager itself knows temperature, top-k and top-p only, with one random state for all. Here one processor does everything
for each row and ends in Gumbel noise from the request's own generator, so the manager's plain argmax draws a sample (Gumbel-max
trick), greedy and sampled requests share a batch, and a seed's answer never depends on its neighbours.

The rules are those of TensorRT-LLM's kernels (``cpp/tensorrt_llm/kernels``):

* ``penaltyKernels.cu``: temperature, then for each token that occurs in prompt **or** output repetition (divides a positive
  score, multiplies a negative one), presence (once) and frequency (times its occurrences), then the end id's ban up to
  ``min_tokens``. Virtual tokens are not counted (ids >= vocab_size are skipped there too).
* ``banBadWords.cu``: after that; a word's first tokens may stand in the prompt.
* ``samplingTopKKernels.cu``: top-k, then top-p of what is left. The log probability of a token is that of the full
  distribution after the steps above and before top-k and top-p, "the same way as OpenAI does"; its ``output_log_probs`` are
  so only with the model parameter ``normalize_log_probs`` = false (true makes every greedy token's 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor

Word = tuple[int, ...]

_COLDEST = 1e-30  # scores divided by less would be infinite, several of them


@dataclass
class Sampling:
    """One request's sampling settings under TensorRT-LLM's names, and the state that sampling needs.

    Greedy unless ``top_k`` > 1 or ``top_p`` is given, as TensorRT-LLM's defaults have it (top_k 1).
    """

    end_id: int
    temperature: float = 1.0
    top_k: int | None = None  # 0: no limit
    top_p: float | None = None
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    bad_words: Sequence[Word] = ()
    return_log_probs: bool = False
    log_probs: list[float] = field(default_factory=list)  # of the tokens drawn, grows with them
    _generator: torch.Generator | None = field(default=None, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sampling:
        return self  # the manager copies a request's arguments when it restarts it; the random state must go on

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        if self.temperature == 0.0 or self.top_k == 1:
            return True
        return self.top_k in (None, 0) and self.top_p is None

    @property
    def plain(self) -> bool:
        """Whether the scores stay as they are."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return self.greedy and penalties == (1.0, 0.0, 0.0) and not (self.min_tokens or self.bad_words or self.return_log_probs)

    def generator(self, device: torch.device) -> torch.Generator:
        """The request's own random state."""
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator


def process(scores: torch.Tensor, sampling: Sampling, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
    """Scores [vocab] float32 of one request's next token -> scores whose argmax is the token to take."""
    if sampling.temperature not in (0.0, 1.0):
        scores = scores / max(sampling.temperature, _COLDEST)
    scores = _penalise(scores, sampling, prompt, output)
    if len(output) < sampling.min_tokens and 0 <= sampling.end_id < scores.shape[0]:
        scores = scores.index_fill(0, torch.tensor([sampling.end_id], device=scores.device), -torch.inf)
    if sampling.bad_words:
        scores = _ban(scores, sampling.bad_words, [*prompt, *output])
    full = scores
    if not sampling.greedy:
        scores = _keep_top_k(scores, sampling.top_k or 0)
        scores = _keep_top_p(scores, 1.0 if sampling.top_p is None else sampling.top_p)
        scores = scores + _gumbel_noise(scores, sampling.generator(scores.device))
    if sampling.return_log_probs:
        sampling.log_probs.append(float(full.log_softmax(dim=0)[scores.argmax()]))
    return scores


def _penalise(scores: torch.Tensor, sampling: Sampling, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
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
    """Applies :func:`process` to each row of the manager's scores. Needs its synchronous mode, without its CUDA graphs."""

    supported_kwargs: dict[str, type] = {"sampling": Sampling}  # noqa: RUF012 (the base class's form)
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
            sampling: Sampling = state.logit_processor_kwargs["sampling"]
            if not sampling.plain:
                scores[row] = process(scores[row], sampling, state.initial_tokens, state.generated_tokens)
        return scores
