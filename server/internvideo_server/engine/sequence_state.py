"""The state of one answer while it is generated: shared by whoever samples its tokens and whoever sends them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .grammar import Grammar
from .sampling_params import SamplingParams


@dataclass
class SequenceState:
    """One of a request's answers.

    Attributes:
        params: With this answer's own seed.
        grammar: What its tokens must keep to.
        log_probs: Of the tokens drawn; grows with them.
        top_logprobs: Of each token drawn, the likeliest there: ids [k] and log probabilities [k], likeliest first.
        complete_at: After so many tokens the grammar is complete and nothing can follow.
        failure: Why no further token can be drawn.
    """

    params: SamplingParams
    grammar: Grammar | None = None
    log_probs: list[float] = field(default_factory=list)
    top_logprobs: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]] = field(default_factory=list)
    complete_at: int | None = None
    failure: str | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> SequenceState:
        return self  # the manager copies a request's arguments when it restarts it; the state must go on

    @property
    def plain(self) -> bool:
        """Whether the model's scores are taken as they are."""
        return self.params.plain and self.grammar is None
