"""The most recently used values within a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

from internvideo_server.metrics import Meter

V = TypeVar("V")


class ByteLru(Generic[V]):
    """A cache by content key. Thread-safe.

    Args:
        name: Label of its metrics.
        capacity: Bytes; 0 keeps nothing.
        meter: Counts hits, misses, evictions and bytes.
    """

    def __init__(self, name: str, capacity: int, meter: Meter) -> None:
        self.capacity = capacity
        self._meter, self._label = meter, {"cache": name}
        self._entries: OrderedDict[bytes, tuple[V, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: bytes, *, count: bool = True) -> V | None:
        """The value, if it is here.

        Args:
            key: Its name.
            count: Whether this look-up is a hit or a miss, or only a question.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
        if count:
            self.count(hit=entry is not None)
        return None if entry is None else entry[0]

    def count(self, *, hit: bool) -> None:
        """Note a use (hit) or a piece of work that had to be done (miss)."""
        self._meter.add("internvideo_cache_hits_total" if hit else "internvideo_cache_misses_total", 1, **self._label)

    def put(self, key: bytes, value: V, size: int) -> None:
        """Keep a value of so many bytes; what was used longest ago makes room. Larger than the whole cache: it is not kept."""
        evicted = 0
        with self._lock:
            if size > self.capacity or key in self._entries:
                return
            self._entries[key] = value, size
            self._bytes += size
            while self._bytes > self.capacity:
                _, (_, freed) = self._entries.popitem(last=False)
                self._bytes -= freed
                evicted += 1
            now = self._bytes
        self._meter.add("internvideo_cache_evictions_total", evicted, **self._label)
        self._meter.set("internvideo_cache_bytes", now, **self._label)

    @property
    def size(self) -> int:
        """Bytes in the cache."""
        return self._bytes
