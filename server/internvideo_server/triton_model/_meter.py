"""The library's figures on Triton's metrics endpoint."""

from __future__ import annotations

import logging
import threading
from typing import Any

import triton_python_backend_utils as pb_utils

from internvideo_server.metrics import METRICS, Meter, as_key, of_model

_log = logging.getLogger(__name__)


class TritonMeter(Meter):
    """A meter whose figures Triton shows. Keep it: the metrics end with it.

    Make it in ``initialize``: Triton 2.51 ended by signal 11 while several worker threads made and raised metrics
    (docs/caching.md), so all are made here, and ``publish`` is one thread's at a time.

    Args:
        model: The Triton model's name.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        self._publishing = threading.Lock()
        kinds = {"counter": pb_utils.MetricFamily.COUNTER, "gauge": pb_utils.MetricFamily.GAUGE}
        self._families: dict[str, Any] = {}
        self._shown: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[Any, float]] = {}
        for name, labels in of_model(model):
            kind, description = METRICS[name]
            if name not in self._families:
                self._families[name] = pb_utils.MetricFamily(name, description, kinds[kind])
            self._shown[name, as_key(labels)] = self._families[name].Metric(labels=labels), 0.0

    def publish(self) -> None:
        """Bring Triton's metrics up to date; what does not get through (no room in the shared memory, say), at the next call."""
        try:
            with self._publishing:
                self._publish()
        except Exception:  # no request must suffer for a figure
            _log.exception("metrics could not be shown")

    def _publish(self) -> None:
        for (name, labels), (metric, shown) in self._shown.items():
            now = self.value(name, **dict(labels))
            if now != shown:
                if METRICS[name][0] == "gauge":
                    metric.set(now)
                else:
                    metric.increment(now - shown)
                self._shown[name, labels] = metric, now
