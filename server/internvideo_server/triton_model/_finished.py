"""The reports of requests, for those who ask soon after."""

from __future__ import annotations

import threading

from cachetools import LRUCache

_KEPT = 1024


class Finished:
    """The reports of the requests that finished last, by request id. Thread-safe."""

    def __init__(self) -> None:
        self._reports: LRUCache[str, str] = LRUCache(_KEPT)
        self._lock = threading.Lock()

    def put(self, request_id: str, report: str) -> None:
        """Keep the report of a request, if it has an id."""
        if not request_id:
            return
        with self._lock:
            self._reports[request_id] = report

    def get(self, request_id: str) -> str:
        """A JSON object; empty for an id that is not known (any more)."""
        with self._lock:
            return self._reports.get(request_id, "{}")
