"""What the engine needs of whatever runs the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .request import GenerationRequest
from .sequence_state import SequenceState


@dataclass(frozen=True)
class BatchOutput:
    """What one answer has so far: all its tokens, the end id included."""

    name: str
    tokens: list[int]
    finished: bool
    error: str | None = None


class Batch(Protocol):
    """A batch that answers enter and leave at every step. It calls ``on_dropped`` with a cancelled one's name once it is gone."""

    def add(self, name: str, request: GenerationRequest, state: SequenceState) -> None:
        """Start an answer. Where the batch has died, nothing comes of it; ``alive`` tells.

        Raises:
            ValueError: It can never run as it is; the text is for the client.
        """

    def cancel(self, name: str) -> None:
        """Ask for the end of an answer; until ``on_dropped`` tells that it is done, outputs may still come."""

    def next_output(self, timeout: float) -> BatchOutput | None:
        """The next output of any answer, or None after ``timeout`` seconds."""

    @property
    def alive(self) -> bool:
        """Whether it runs."""

    @property
    def cache_used(self) -> float | None:
        """Share of the KV cache that requests hold, 0 to 1; None: it is not known."""

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through the model so far: of prompts those that the KV cache had not, and those of answers."""

    @property
    def beats(self) -> int:
        """Grows as long as it computes: a number that stands still under answers is how one sees that it is stuck."""

    def close(self) -> None:
        """End it; answers under way get no more outputs."""
