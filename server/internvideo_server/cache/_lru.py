"""The most recently used values within a number of bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from cachetools import LRUCache

from internvideo_server.metrics import Meter, MissKind

V = TypeVar("V")

_REMEMBERED = 16384  # keys of what is not here any more


class _Entries(LRUCache[bytes, V]):
    """Calls ``on_evict`` with the key of what makes room."""

    def __init__(self, capacity: int, size_of: Callable[[V], int], on_evict: Callable[[bytes], None]) -> None:
        super().__init__(capacity, size_of)
        self._on_evict = on_evict

    def popitem(self) -> tuple[bytes, V]:
        key, value = super().popitem()
        self._on_evict(key)
        return key, value


class ByteLru(Generic[V]):
    """A cache by content key. Thread-safe.

    Args:
        name: Label of its metrics.
        capacity: Bytes; 0 keeps nothing.
        size_of: Bytes of a value.
        meter: Counts hits, misses, evictions and bytes.
    """

    def __init__(self, name: str, capacity: int, size_of: Callable[[V], int], meter: Meter) -> None:
        self.capacity, self.size_of = capacity, size_of
        self._meter, self._label = meter, {"cache": name}
        self._gone: LRUCache[bytes, MissKind] = LRUCache(_REMEMBERED)
        self._entries: _Entries[V] = _Entries(capacity, size_of, lambda key: self._gone.__setitem__(key, "evicted"))
        self._lock = threading.Lock()

    def get(self, key: bytes, *, count: bool = True) -> V | None:
        """The value, if it is here.

        Args:
            key: Its name.
            count: Whether this look-up is a hit or a miss, or only a question.
        """
        with self._lock:
            value = self._entries.get(key)
        if count:
            self.count(key, hit=value is not None)
        return value

    def count(self, key: bytes, *, hit: bool) -> None:
        """Note a use (hit) or a piece of work that had to be done (miss, by its kind)."""
        if hit:
            self._meter.add("internvideo_cache_hits_total", 1, **self._label)
            return
        with self._lock:
            kind: MissKind = self._gone.get(key, "new")
        self._meter.add("internvideo_cache_misses_total", 1, kind=kind, **self._label)

    def put(self, key: bytes, value: V) -> None:
        """Keep a value; what was used longest ago makes room. Larger than the whole cache: it is not kept."""
        with self._lock:
            if key in self._entries:
                return
            if self.size_of(value) > self.capacity:
                self._gone[key] = "too_large"
                return
            before = len(self._entries)
            self._entries[key] = value
            evicted, now = before + 1 - len(self._entries), self._entries.currsize
        self._meter.add("internvideo_cache_evictions_total", evicted, **self._label)
        self._meter.set("internvideo_cache_bytes", now, **self._label)

    def halve(self) -> None:
        """Give half of it back, what was used longest ago."""
        with self._lock:
            before, aim = len(self._entries), self._entries.currsize // 2
            while self._entries.currsize > aim:
                self._entries.popitem()
            evicted, now = before - len(self._entries), self._entries.currsize
        self._meter.add("internvideo_cache_evictions_total", evicted, **self._label)
        self._meter.set("internvideo_cache_bytes", now, **self._label)

    @property
    def size(self) -> int:
        """Bytes in the cache."""
        return int(self._entries.currsize)
