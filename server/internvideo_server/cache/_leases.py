"""Values that stay until the request that was promised them comes, or its time is over.

`preprocessing` asks `vit` which embeddings it has before decoding. Between that look-up and the arrival of the request at `vit`
the cache may evict what was found. So the answer is a lease: a reference to the values under a ticket that the request
carries. It ends when the request has come, is stopped, or its deadline has passed (after which it would fail anyway), so an
eviction can never fail a request, and one that Triton drops between the steps leaves nothing behind for long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from internvideo_server.cache._lru import ByteLru
from internvideo_server.cache._tickets import TicketBook

V = TypeVar("V")


class LeaseBook(TicketBook[V]):
    """The leases on one cache's values. Thread-safe.

    Args:
        cache: Where the values are.
        size_of: Bytes of a value. What leases hold together stays within the cache's capacity.
    """

    def __init__(self, cache: ByteLru[V], size_of: Callable[[V], int]) -> None:
        super().__init__()
        self._cache, self._size_of = cache, size_of

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
        granted = bool(found) and self.put(ticket, request_id, deadline, found)
        return [granted and key in found for key in keys]

    def _fits(self, values: dict[bytes, V]) -> bool:
        held = {id(value): value for each in (*(held.values for held in self._held.values()), values) for value in each.values()}
        return sum(map(self._size_of, held.values())) <= self._cache.capacity
