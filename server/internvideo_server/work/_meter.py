"""The library's figures on Triton's metrics endpoint."""

from __future__ import annotations

import threading
from typing import Any

import triton_python_backend_utils as pb_utils

from ..metrics import METRICS, Meter


class TritonMeter(Meter):
    """A meter whose figures Triton shows. Keep it: the metrics end with it."""

    def __init__(self) -> None:
        super().__init__()
        self._making = threading.Lock()
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}

    def add(self, name: str, value: float, **labels: str) -> None:
        """Raise a counter."""
        super().add(name, value, **labels)
        self._metric(name, labels).increment(value)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        super().set(name, value, **labels)
        self._metric(name, labels).set(value)

    def _metric(self, name: str, labels: dict[str, str]) -> Any:
        key = name, tuple(sorted(labels.items()))
        with self._making:
            if key not in self._metrics:
                if name not in self._families:
                    kind, description = METRICS[name]
                    kinds = {"counter": pb_utils.MetricFamily.COUNTER, "gauge": pb_utils.MetricFamily.GAUGE}
                    self._families[name] = pb_utils.MetricFamily(name, description, kinds[kind])
                self._metrics[key] = self._families[name].Metric(labels=labels)
            return self._metrics[key]
