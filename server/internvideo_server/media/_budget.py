"""How long one request's work may still take, and whether anybody still wants it."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

from internvideo_server.errors import ErrorCode, ServingError

POLL_SECONDS = 0.05  # how soon waiting code sees a cancel or a passed deadline


class Cancelled(Protocol):
    """Anything that tells whether the request was given up; ``threading.Event`` fits."""

    def is_set(self) -> bool:
        """Whether the work is no longer wanted."""
        ...


@dataclass(frozen=True)
class Budget:
    """The time and the interest left for one request, handed from stage to stage.

    Args:
        deadline: The latest end, in seconds of ``time.monotonic()``.
        cancelled: Becomes set when the client gave up.
    """

    deadline: float = math.inf
    cancelled: Cancelled = field(default_factory=threading.Event)

    @classmethod
    def seconds(cls, seconds: float, cancelled: Cancelled | None = None) -> Budget:
        """A budget that ends ``seconds`` from now."""
        return cls(time.monotonic() + seconds, cancelled or threading.Event())

    def check(self, doing: str) -> None:
        """Raise if the work must end.

        Args:
            doing: What is being done, for the message ("fetching the video").

        Raises:
            ServingError: CANCELLED or DEADLINE_EXCEEDED.
        """
        if self.cancelled.is_set():
            raise ServingError(ErrorCode.CANCELLED, f"the request was cancelled while {doing}")
        if time.monotonic() >= self.deadline:
            raise ServingError(ErrorCode.DEADLINE_EXCEEDED, f"the time allowed for the request ended while {doing}")
