"""One piece of work for all the requests that want its result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from internvideo_server.deadline import POLL_SECONDS, Deadline
from internvideo_server.errors import ErrorCode, ServingError

V = TypeVar("V")
_ENDED = (ErrorCode.CANCELLED, ErrorCode.DEADLINE_EXCEEDED)


class Flight(Generic[V]):
    """Work under way. Made by :meth:`SingleFlight.join`.

    Attributes:
        waiters: The deadlines of all who want the result, the leader's too.
        deadline: The work's own: expired once all of theirs are.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.waiters: list[Deadline] = []
        self.deadline = Deadline.last_of(self.waiters)
        self._on_end = on_end
        self._done = threading.Event()
        self._result: V | None = None
        self._error: BaseException | None = None

    def finish(self, result: V) -> None:
        """The leader's: give the result to all."""
        self._result = result
        self._end()

    def fail(self, error: BaseException) -> None:
        """The leader's: raise the error at all."""
        self._error = error
        self._end()

    def wait(self, deadline: Deadline, doing: str) -> bool:
        """Wait for the end.

        Args:
            deadline: The caller's own.
            doing: For the message, if it ends the wait.

        Returns:
            False: the work was ended because all who had wanted it before the caller were gone; it is to be done anew.

        Raises:
            ServingError: CANCELLED or DEADLINE_EXCEEDED, by the caller's deadline.
        """
        while not self._done.wait(POLL_SECONDS):
            deadline.check(doing)
        deadline.check(doing)
        return not (isinstance(self._error, ServingError) and self._error.code in _ENDED)

    def result(self) -> V:
        """After ``wait``: the result. Raises what the work raised."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value] # V may be an optional type

    def _end(self) -> None:
        self._on_end()
        self._done.set()


class SingleFlight(Generic[V]):
    """Work by key: its first request leads, those that come while it is under way wait for it. Thread-safe."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[V]] = {}
        self._lock = threading.Lock()

    def join(self, key: Hashable, deadline: Deadline) -> tuple[Flight[V], bool]:
        """Take part in the work.

        Args:
            key: Names the result.
            deadline: The caller's.

        Returns:
            The flight, and whether the caller leads: it then has to end the flight, by ``finish`` or ``fail``.
        """
        with self._lock:
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = Flight(partial(self._remove, key))
            flight.waiters.append(deadline)
            return flight, leads

    def run(self, key: Hashable, deadline: Deadline, work: Callable[[Deadline], V], doing: str) -> V:
        """The result of the work, done by the caller or by another one.

        Args:
            key: Names the result.
            deadline: The caller's. The work itself ends early only when nobody waits for it any more.
            work: Does it, by the deadline that it is given.
            doing: What the caller waits for, for the message if its deadline ends that.

        Raises:
            ServingError: What the work raised; CANCELLED or DEADLINE_EXCEEDED by the caller's own deadline.
        """
        while True:
            flight, leads = self.join(key, deadline)
            if leads:
                try:
                    flight.finish(work(flight.deadline))
                except BaseException as error:
                    flight.fail(error)
            if flight.wait(deadline, doing):
                return flight.result()

    def _remove(self, key: Hashable) -> None:
        with self._lock:
            del self._flights[key]
