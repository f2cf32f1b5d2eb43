"""What requests have cost, for those who ask soon after."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping

_KEPT = 1024


class Finished:
    """The figures of the requests that finished last, by request id. Thread-safe."""

    def __init__(self) -> None:
        self._figures: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, request_id: str, figures: Mapping[str, float]) -> None:
        """Keep the figures of a request, if it has an id."""
        if not request_id:
            return
        with self._lock:
            self._figures[request_id] = json.dumps(figures)
            self._figures.move_to_end(request_id)
            if len(self._figures) > _KEPT:
                self._figures.popitem(last=False)

    def get(self, request_id: str) -> str:
        """A JSON object, short metric name -> value; empty for an id that is not known (any more)."""
        with self._lock:
            return self._figures.get(request_id, "{}")
