"""How fast requests end, which tells when trying again makes sense."""

from __future__ import annotations

import math
import time

_WEIGHT = 0.2  # of the newest interval
_MOST_S = 60


class Pace:
    """Keeps the time between two requests that ended, as a moving average."""

    def __init__(self) -> None:
        self._ended_at: float | None = None
        self._interval_s = 1.0

    def ended(self) -> None:
        """A request has ended."""
        now = time.monotonic()
        if self._ended_at is not None:
            self._interval_s += _WEIGHT * (min(now - self._ended_at, _MOST_S) - self._interval_s)
        self._ended_at = now

    def retry_after_s(self, waiting: int = 1) -> int:
        """Whole seconds until so many more requests will have ended, from 1 to 60."""
        return min(max(math.ceil(self._interval_s * max(waiting, 1)), 1), _MOST_S)
