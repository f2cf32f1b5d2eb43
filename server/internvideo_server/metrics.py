"""Counting what happens: the library's side. ``work`` carries it to Triton's metrics endpoint."""

from __future__ import annotations

import threading
from collections import defaultdict

Labels = tuple[tuple[str, str], ...]

#: name -> (kind, description): everything that is counted.
METRICS = {
    "internvideo_fetch_seconds_total": ("counter", "Seconds spent opening and downloading media"),
    "internvideo_fetch_bytes_total": ("counter", "Bytes of media that were opened or downloaded"),
    "internvideo_decode_seconds_total": ("counter", "Seconds spent decoding and resizing"),
    "internvideo_frames_decoded_total": ("counter", "Frames that were decoded and resized"),
    "internvideo_frames_delivered_total": ("counter", "Frames that requests asked about, decoded or not"),
    "internvideo_cache_hits_total": ("counter", "Media found in a cache"),
    "internvideo_cache_misses_total": ("counter", "Media not found in a cache"),
    "internvideo_cache_evictions_total": ("counter", "Media that made room for others in a cache"),
    "internvideo_cache_bytes": ("gauge", "Bytes in a cache"),
    "internvideo_vision_seconds_total": ("counter", "Seconds that the vision tower worked"),
    "internvideo_vision_frames_total": ("counter", "Frames that went through the vision tower"),
    "internvideo_queue_seconds_total": ("counter", "Seconds that requests waited for a worker of a model"),
    "internvideo_work_seconds_total": ("counter", "Seconds that the workers of a model were at work"),
}


class Meter:
    """Keeps the figures in memory. Thread-safe."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, Labels], float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, name: str, value: float, **labels: str) -> None:
        """Raise a counter."""
        if value:
            with self._lock:
                self._values[name, _labels(labels)] += value

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._values[name, _labels(labels)] = value

    def value(self, name: str, **labels: str) -> float:
        """What it is now."""
        with self._lock:
            return self._values.get((name, _labels(labels)), 0.0)


def _labels(labels: dict[str, str]) -> Labels:
    return tuple(sorted(labels.items()))
