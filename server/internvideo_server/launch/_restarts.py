"""How often, and how soon, what died is started again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 600.0
_QUIET_S = 60.0  # who ran that long starts again at once
_LONGEST_DELAY_S = 30.0


class TooManyRestartsError(Exception):
    """What dies that often is not cured by another start."""


@dataclass
class Restarts:
    """The restarts of one run.

    Args:
        most: Restarts of anything within ten minutes; one more is too many.
    """

    most: int
    _times: deque[float] = field(default_factory=deque)
    _quick: dict[str, tuple[float, int]] = field(default_factory=dict)

    def delay(self, name: str, now: float) -> float:
        """Count a death; seconds to wait before the start: none at first, then 1, 2, 4 to 30 while deaths follow each other.

        Raises:
            TooManyRestartsError: The limit is reached.
        """
        while self._times and self._times[0] <= now - WINDOW_S:
            self._times.popleft()
        if len(self._times) >= self.most:
            raise TooManyRestartsError(f"{len(self._times)} restarts in {WINDOW_S / 60:g} minutes did not help (--max-restarts)")
        self._times.append(now)
        last, count = self._quick.get(name, (-WINDOW_S, 0))
        count = count + 1 if now - last < _QUIET_S else 0
        self._quick[name] = (now, count)
        return min(2.0 ** (count - 1), _LONGEST_DELAY_S) if count else 0.0
