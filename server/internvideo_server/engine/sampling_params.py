"""What one request asks of the sampler, under TensorRT-LLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Word = tuple[int, ...]

MAX_TOP_LOGPROBS = 20  # OpenAI's


@dataclass(frozen=True)
class SamplingParams:
    """One request's sampling settings.

    Greedy unless ``top_k`` > 1 or ``top_p`` is given, as TensorRT-LLM's defaults have it (top_k 1).
    """

    end_id: int
    temperature: float = 1.0
    top_k: int | None = None  # 0: no limit
    top_p: float | None = None
    min_p: float = 0.0  # of the likeliest token's probability
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    bad_words: Sequence[Word] = ()
    embedding_bias: npt.NDArray[np.float32] | None = field(default=None, compare=False)  # [vocab]
    return_log_probs: bool = False
    num_top_logprobs: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        if self.temperature == 0.0 or self.top_k == 1:
            return True
        return self.top_k in (None, 0) and self.top_p is None

    @property
    def wants_log_probs(self) -> bool:
        """Whether any log probabilities are to be kept."""
        return self.return_log_probs or self.num_top_logprobs > 0

    @property
    def plain(self) -> bool:
        """Whether the scores stay as they are."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        changes = self.min_tokens or self.bad_words or self.embedding_bias is not None
        return self.greedy and penalties == (1.0, 0.0, 0.0) and not changes and not self.wants_log_probs
