"""Values that stay until the request that was promised them comes, or its time is over.

`preprocessing` asks `vit` which embeddings it has before decoding. Between that look-up and the arrival of the request at `vit`
the cache may evict what was found. So the answer is a lease: a reference to the values under a ticket that the request
carries. It ends when the request has come, is stopped, or its deadline has passed (after which it would fail anyway), so an
eviction can never fail a request, and one that Triton drops between the steps leaves nothing behind for long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from internvideo_server.cache._lru import ByteLru

V = TypeVar("V")


@dataclass(frozen=True)
class _Lease(Generic[V]):
    request_id: str
    deadline: float  # time.monotonic()
    values: dict[bytes, V]


class LeaseBook(Generic[V]):
    """The leases on one cache's values. Thread-safe.

    Args:
        cache: Where the values are.
        size_of: Bytes of a value. What leases hold together stays within the cache's capacity.
    """

    def __init__(self, cache: ByteLru[V], size_of: Callable[[V], int]) -> None:
        self._cache, self._size_of = cache, size_of
        self._leases: dict[int, _Lease[V]] = {}
        self._lock = threading.Lock()

    def grant(self, ticket: int, request_id: str, keys: list[bytes], deadline: float) -> list[bool]:
        """Hold those of the values that are in the cache.

        Args:
            ticket: Names the lease, unique.
            request_id: Triton's, by which it may be stopped.
            keys: Of the values.
            deadline: Of the request, in seconds of ``time.monotonic()``, which all processes of a host share.

        Returns:
            Which of the values are held.
        """
        found = {key: value for key in keys if (value := self._cache.get(key, count=False)) is not None}
        with self._lock:
            self._drop_expired()
            if found and self._fits(found):
                self._leases[ticket] = _Lease(request_id, deadline, found)
                return [key in found for key in keys]
        return [False] * len(keys)

    def take(self, ticket: int) -> dict[bytes, V]:
        """The values of a lease, which ends. None are left of one that has ended."""
        with self._lock:
            lease = self._leases.pop(ticket, None)
        return {} if lease is None else lease.values

    def stop(self, request_id: str) -> None:
        """End the leases of a request."""
        with self._lock:
            for ticket in [ticket for ticket, lease in self._leases.items() if lease.request_id == request_id]:
                del self._leases[ticket]

    def __len__(self) -> int:
        with self._lock:
            self._drop_expired()
            return len(self._leases)

    def _fits(self, found: dict[bytes, V]) -> bool:
        held = {id(value): value for lease in (*self._leases.values(), _Lease("", 0.0, found)) for value in lease.values.values()}
        return sum(map(self._size_of, held.values())) <= self._cache.capacity

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for ticket in [ticket for ticket, lease in self._leases.items() if lease.deadline <= now]:
            del self._leases[ticket]
