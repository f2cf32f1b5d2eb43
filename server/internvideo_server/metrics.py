"""Counting what happens: the library's side. ``work`` carries it to Triton's metrics endpoint."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Labels = tuple[tuple[str, str], ...]
#: Why a cache missed: never seen (or so long ago that it is forgotten), evicted for others, larger than the cache.
MissKind = Literal["new", "evicted", "too_large"]

#: name -> (kind, description): everything that is counted.
METRICS: dict[str, tuple[Literal["counter", "gauge"], str]] = {
    "internvideo_fetch_seconds_total": ("counter", "Seconds spent opening, downloading and hashing media"),
    "internvideo_fetch_bytes_total": ("counter", "Bytes of media that were opened or downloaded"),
    "internvideo_decode_seconds_total": ("counter", "Seconds spent decoding and resizing"),
    "internvideo_frames_decoded_total": ("counter", "Frames that were decoded and resized"),
    "internvideo_frames_damaged_total": ("counter", "Those of them that show damage or stand in for one that cannot be read"),
    "internvideo_frames_delivered_total": ("counter", "Frames that requests asked about, decoded or not"),
    "internvideo_cache_hits_total": ("counter", "Media found in a cache"),
    "internvideo_cache_misses_total": ("counter", "Media not found in a cache: new, evicted or too_large"),
    "internvideo_cache_evictions_total": ("counter", "Media that made room for others in a cache"),
    "internvideo_cache_bytes": ("gauge", "Bytes in a cache"),
    "internvideo_vision_seconds_total": ("counter", "Seconds that the vision tower worked"),
    "internvideo_vision_frames_total": ("counter", "Frames that went through the vision tower"),
    "internvideo_regions_in_use": ("gauge", "Buffers for prompt tables that are being made or handed over"),
    "internvideo_queue_seconds_total": ("counter", "Seconds that requests waited for a worker of a model"),
    "internvideo_work_seconds_total": ("counter", "Seconds that the workers of a model were at work"),
}
_PREPROCESSING = (
    "fetch_seconds_total",
    "fetch_bytes_total",
    "decode_seconds_total",
    "frames_decoded_total",
    "frames_damaged_total",
    "frames_delivered_total",
)
_CACHE = ("cache_hits_total", "cache_evictions_total", "cache_bytes")
_POOL = ("queue_seconds_total", "work_seconds_total")


def of_model(model: str) -> list[tuple[str, dict[str, str]]]:
    """The metrics of a Triton model, each with its labels."""
    vision = model == "vit"
    own = ("vision_seconds_total", "vision_frames_total", "regions_in_use") if vision else _PREPROCESSING
    cache = {"cache": "embeddings" if vision else "frames"}
    named: list[tuple[str, dict[str, str]]] = (
        [(name, {}) for name in own] + [(name, cache) for name in _CACHE] + [(name, {"model": model}) for name in _POOL]
    )
    named += [("cache_misses_total", {**cache, "kind": kind}) for kind in get_args(MissKind)]
    return [(f"internvideo_{name}", labels) for name, labels in named]


class Meter:
    """Keeps the figures in memory. Thread-safe."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, Labels], float] = defaultdict(float)
        self._lock = threading.Lock()
        self._thread = threading.local()

    def add(self, name: str, value: float, **labels: str) -> None:
        """Raise a counter."""
        with self._lock:
            self._values[name, as_key(labels)] += value
        tally: defaultdict[str, float] | None = getattr(self._thread, "tally", None)
        if tally is not None:
            tally[name.removeprefix("internvideo_").removesuffix("_total")] += value

    def note(self, name: str, value: float) -> None:
        """Add to the calling thread's tally alone, by its short name: what another thread has counted already."""
        tally: defaultdict[str, float] | None = getattr(self._thread, "tally", None)
        if tally is not None:
            tally[name] += value

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._values[name, as_key(labels)] = value

    @contextmanager
    def tally(self) -> Iterator[dict[str, float]]:
        """What the calling thread adds meanwhile: short name (``decode_seconds``) -> sum, whatever the labels."""
        tally: defaultdict[str, float] = defaultdict(float)
        self._thread.tally = tally
        try:
            yield tally
        finally:
            self._thread.tally = None

    def value(self, name: str, **labels: str) -> float:
        """What it is now."""
        with self._lock:
            return self._values.get((name, as_key(labels)), 0.0)


def as_key(labels: dict[str, str]) -> Labels:
    """Labels as part of a dictionary's key."""
    return tuple(sorted(labels.items()))
