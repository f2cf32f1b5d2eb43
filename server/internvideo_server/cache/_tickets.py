"""Values that wait under a ticket for the request that carries it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True)
class Held(Generic[V]):
    """What waits for one request."""

    request_id: str
    deadline: float  # time.monotonic()
    values: dict[bytes, V]


class TicketBook(Generic[V]):
    """Values by ticket. They go when the request comes, is stopped, or its deadline has passed. Thread-safe.

    Args:
        limit: Tickets at a time.
    """

    def __init__(self, limit: float = float("inf")) -> None:
        self._limit = limit
        self._held: dict[int, Held[V]] = {}
        self._lock = threading.Lock()

    def put(self, ticket: int, request_id: str, deadline: float, values: dict[bytes, V]) -> bool:
        """Keep values for a request.

        Args:
            ticket: Names them, unique.
            request_id: Triton's, by which it may be stopped.
            deadline: Of the request, in seconds of ``time.monotonic()``, which all processes of a host share.
            values: By key.

        Returns:
            Whether there was room.
        """
        with self._lock:
            self._drop_expired()
            if len(self._held) >= self._limit or not self._fits(values):
                return False
            self._held[ticket] = Held(request_id, deadline, values)
            return True

    def take(self, ticket: int) -> dict[bytes, V]:
        """The values under a ticket, which ends. None are left of one that has ended."""
        with self._lock:
            held = self._held.pop(ticket, None)
        return {} if held is None else held.values

    def stop(self, request_id: str) -> None:
        """End the tickets of a request."""
        with self._lock:
            for ticket in [ticket for ticket, held in self._held.items() if held.request_id == request_id]:
                del self._held[ticket]

    def __len__(self) -> int:
        with self._lock:
            self._drop_expired()
            return len(self._held)

    def _fits(self, values: dict[bytes, V]) -> bool:
        return True

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for ticket in [ticket for ticket, held in self._held.items() if held.deadline <= now]:
            del self._held[ticket]
