"""How long one request's work may still take, and whether anybody still wants it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

from internvideo_server.errors import ErrorCode, ServingError

POLL_SECONDS = 0.05  # how soon waiting code sees a cancel or a passed deadline


class Deadline:
    """The time and the interest left for one piece of work, handed down from stage to stage. Thread-safe.

    Args:
        at: The latest end, in seconds of ``time.monotonic()``, which all processes of a host share.
        cancelled: Asked, beside :meth:`cancel`, whether the client has given up; cheap, and callable from any thread.

    Attributes:
        at: As given.
    """

    def __init__(self, at: float = math.inf, cancelled: Callable[[], bool] | None = None) -> None:
        self.at = at
        self._ask = cancelled
        self._cancelled = threading.Event()

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """A deadline ``seconds`` from now."""
        return cls(time.monotonic() + seconds)

    @classmethod
    def last_of(cls, deadlines: Sequence[Deadline]) -> Deadline:
        """Of work that several wait for: expired once all of theirs are. The sequence may grow meanwhile."""
        return cls(cancelled=lambda: all(each.expired() for each in deadlines))

    def cancel(self) -> None:
        """Nobody wants the work any more."""
        self._cancelled.set()

    def cancelled(self) -> bool:
        """Whether nobody wants the work any more."""
        if not self._cancelled.is_set() and self._ask is not None and self._ask():
            self._cancelled.set()
        return self._cancelled.is_set()

    def expired(self) -> bool:
        """Whether the work must end: nobody wants it any more, or its time is over."""
        return self.cancelled() or time.monotonic() >= self.at

    def check(self, doing: str) -> None:
        """Raise if the work must end.

        Args:
            doing: What is being done, for the message ("fetching the video").

        Raises:
            ServingError: CANCELLED or DEADLINE_EXCEEDED.
        """
        if self.cancelled():
            raise ServingError(ErrorCode.CANCELLED, f"the request was cancelled while {doing}")
        if time.monotonic() >= self.at:
            raise ServingError(ErrorCode.DEADLINE_EXCEEDED, f"the time allowed for the request ended while {doing}")
