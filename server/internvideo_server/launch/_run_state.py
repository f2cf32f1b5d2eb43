"""What the supervisor knows of the run's health, for the adapter and whoever may read the run's directory."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

STATE_FILE = "state.json"
#: Made by the adapter where a model was silent for too long: the launcher then asks each one (``_recovery.py``).
SUSPECT_FILE = "suspect"


def private(path: str, flags: int) -> int:
    """An ``opener`` for files that nobody else may read."""
    return os.open(path, flags, 0o600)


class RunState:
    """``state.json``: written whole, at each change, beside a temporary name.

    Its fields: ``status`` ("starting", "serving", "recovering", "draining", "failed"; of a group also "degraded": a replica ended
    for good), ``down`` (names of the programs, models or replicas that are dead at the moment), ``deaths`` (name -> how often it
    died in this run) and ``reason`` (of the last death).
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / STATE_FILE
        self._lock = threading.Lock()
        self._status, self._down, self._deaths, self._reason = "starting", set[str](), dict[str, int](), ""
        self._write()

    def set_status(self, status: str) -> None:
        """One of those above."""
        with self._lock:
            self._status = status
            self._write()

    def died(self, name: str, reason: str) -> None:
        """A program or a model."""
        with self._lock:
            self._down.add(name)
            self._deaths[name] = self._deaths.get(name, 0) + 1
            self._reason = reason
            self._status = "recovering" if self._status == "serving" else self._status
            self._write()

    def back(self, name: str) -> None:
        """It serves again."""
        with self._lock:
            self._down.discard(name)
            if not self._down and self._status == "recovering":
                self._status = "serving"
            self._write()

    def _write(self) -> None:
        document = {"status": self._status, "down": sorted(self._down), "deaths": self._deaths, "reason": self._reason}
        beside = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):  # a full disk must not end what watches
            with open(beside, "w", opener=private) as file:
                file.write(json.dumps(document))
            os.replace(beside, self._file)
