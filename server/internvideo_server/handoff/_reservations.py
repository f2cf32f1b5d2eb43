"""Embeddings and frames that wait in `vit` for a request on its way there.

`preprocessing` asks `vit` which embeddings it has before decoding. Between that look-up and the arrival of the request at `vit`
the cache may evict what was found. So the answer holds a reference to the values under a reservation that the request carries
and claims. It ends when the request has come, is stopped, or its deadline has passed (after which it would fail anyway), so an
eviction can never fail a request, and one that Triton drops between the steps leaves nothing behind for long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from internvideo_server.cache import ByteLru
from internvideo_server.frame_buffer import FrameBuffer

from ._incoming import IncomingFrames

V = TypeVar("V")


@dataclass
class Reserved(Generic[V]):
    """What waits for one request, by key."""

    request_id: str = ""
    deadline: float = 0.0  # time.monotonic()
    embeddings: dict[bytes, V] = field(default_factory=dict)
    frames: dict[bytes, FrameBuffer | IncomingFrames] = field(default_factory=dict)
    params: dict[bytes, str] = field(default_factory=dict)  # the request's field of each medium, for errors about it


class Reservations(Generic[V]):
    """What is held for requests, until they claim it. Thread-safe.

    Args:
        cache: Of the embeddings. What reservations hold of it together stays within its capacity.
        most_with_frames: Reservations that may hold frames at a time.
    """

    def __init__(self, cache: ByteLru[V], most_with_frames: float = float("inf")) -> None:
        self._cache, self._most_with_frames = cache, most_with_frames
        self._held: dict[int, Reserved[V]] = {}
        self._lock = threading.Lock()

    def hold_embeddings(self, reservation: int, request_id: str, deadline: float, keys: Iterable[bytes]) -> set[bytes]:
        """Hold those of the embeddings that are in the cache.

        Args:
            reservation: Its id, unique.
            request_id: Triton's, by which it may be stopped.
            deadline: Of the request, in seconds of ``time.monotonic()``.
            keys: Of the embeddings.

        Returns:
            The keys of what is held: nothing where the cache's capacity is held already.
        """
        found = {key: value for key in keys if (value := self._cache.get(key, count=False)) is not None}
        with self._lock:
            self._drop_expired()
            if not found or not self._fits(found):
                return set()
            self._of(reservation, request_id, deadline).embeddings.update(found)
            return set(found)

    def hold_frames(
        self,
        reservation: int,
        request_id: str,
        deadline: float,
        frames: Mapping[bytes, FrameBuffer | IncomingFrames],
        params: Mapping[bytes, str] | None = None,
    ) -> bool:
        """Hold frames.

        Args:
            reservation: As for :meth:`hold_embeddings`; the two may share it.
            request_id: Likewise.
            deadline: Likewise.
            frames: By key.
            params: The request's field of each medium, for errors about it.

        Returns:
            Whether there was room.
        """
        with self._lock:
            self._drop_expired()
            if sum(bool(held.frames) for held in self._held.values()) >= self._most_with_frames:
                return False
            held = self._of(reservation, request_id, deadline)
            held.frames.update(frames)
            held.params.update(params or {})
            return True

    def claim(self, reservation: int) -> Reserved[V]:
        """What waits under a reservation, which ends. Nothing is left of one that has ended."""
        with self._lock:
            return self._held.pop(reservation, None) or Reserved()

    def cancel(self, request_id: str) -> None:
        """End the reservations of a request that was stopped."""
        with self._lock:
            for reservation in [number for number, held in self._held.items() if held.request_id == request_id]:
                del self._held[reservation]

    def __len__(self) -> int:
        with self._lock:
            self._drop_expired()
            return len(self._held)

    def _of(self, reservation: int, request_id: str, deadline: float) -> Reserved[V]:
        return self._held.setdefault(reservation, Reserved(request_id, deadline))

    def _fits(self, found: dict[bytes, V]) -> bool:
        values = {
            id(value): value for each in (*(held.embeddings for held in self._held.values()), found) for value in each.values()
        }
        return sum(map(self._cache.size_of, values.values())) <= self._cache.capacity

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for reservation in [number for number, held in self._held.items() if held.deadline <= now]:
            del self._held[reservation]
