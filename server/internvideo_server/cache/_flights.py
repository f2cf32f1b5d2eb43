"""One piece of work for all the requests that want its result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.media import POLL_SECONDS, Budget

V = TypeVar("V")
_ENDED = (ErrorCode.CANCELLED, ErrorCode.DEADLINE_EXCEEDED)


class Flights(Generic[V]):
    """Work by key: who comes while it is under way waits for it instead of doing it again. Thread-safe."""

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight[V]] = {}
        self._lock = threading.Lock()

    def run(self, key: bytes, budget: Budget, work: Callable[[Budget], V]) -> V:
        """The result of the work, done by the caller or by another one.

        Args:
            key: Names the result.
            budget: The caller's. The work itself ends early only when nobody waits for it any more.
            work: Does it, within the budget that it is given.

        Raises:
            ServingError: What the work raised; CANCELLED or DEADLINE_EXCEEDED by the caller's own budget.
        """
        while True:
            with self._lock:
                flight = self._flights.get(key)
                leads = flight is None
                if flight is None:
                    flight = self._flights[key] = _Flight()
                flight.waiting.append(budget)
            if leads:
                self._lead(key, flight, work)
            while not flight.done.wait(POLL_SECONDS):
                budget.check("waiting for the frames that another request decodes")
            budget.check("decoding the media")
            if isinstance(flight.error, ServingError) and flight.error.code in _ENDED:
                continue  # everybody else had left
            if flight.error is not None:
                raise flight.error
            return flight.result

    def _lead(self, key: bytes, flight: _Flight[V], work: Callable[[Budget], V]) -> None:
        try:
            flight.result = work(Budget(cancelled=flight))
        except BaseException as error:
            flight.error = error
        finally:
            with self._lock:
                del self._flights[key]
            flight.done.set()


class _Flight(Generic[V]):
    """Work under way; as a ``Cancelled``, set when all who wait have given up or run out of time."""

    result: V

    def __init__(self) -> None:
        self.waiting: list[Budget] = []
        self.done = threading.Event()
        self.error: BaseException | None = None

    def is_set(self) -> bool:
        now = time.monotonic()
        return all(budget.cancelled.is_set() or now >= budget.deadline for budget in self.waiting)
