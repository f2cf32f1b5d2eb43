"""What the launcher's supervisor knows is dead, read from the run's ``state.json``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from internvideo_client.errors import from_code

_LOOK_S = 0.1
_SUSPECT_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class RunState:
    """Follows the file from a task of its own.

    Args:
        file: ``state.json`` of the run's directory; the launcher replaces it at each change.
        on_deaths: Told the names of the programs and models that have died since the last look.

    Attributes:
        status: "starting", "serving", "recovering", "draining" or "failed".
        deaths_by_name: Name of a program or model -> how often it died in this run.
    """

    def __init__(self, file: Path, on_deaths: Callable[[set[str]], None]) -> None:
        self._file, self._on_deaths = file, on_deaths
        self._version: tuple[int, int] | None = None
        self.deaths_by_name: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._suspected = 0.0
        self.status = "starting"
        self.look()

    def look(self) -> None:
        """Read the file if it has changed."""
        with contextlib.suppress(OSError, ValueError):  # the run's directory has gone
            found = os.stat(self._file)
            if (version := (found.st_ino, found.st_mtime_ns)) == self._version:
                return
            document = json.loads(self._file.read_text())
            self._version = version
            self.status = document["status"]
            if self.status == "recovering" and set(document["down"]) <= {"adapter"}:  # who reads this is not dead
                self.status = "serving"
            died = {name for name, count in document["deaths"].items() if count > self.deaths_by_name.get(name, 0)}
            self.deaths_by_name = document["deaths"]
            self._changed.set()
            self._changed = asyncio.Event()
            if died:
                _log.warning("died: %s (%s)", ", ".join(sorted(died)), document["reason"])
                self._on_deaths(died)

    @property
    def deaths(self) -> int:
        """How often anything has died in this run."""
        return sum(self.deaths_by_name.values())

    async def follow(self) -> None:
        """Until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_S)

    async def serving(self) -> bool:
        """Wait until everything is up again; False where it will not be."""
        while self.status in ("starting", "recovering"):
            await self._changed.wait()
        return self.status == "serving"

    def check_ready(self) -> None:
        """Raises: ApiError, 503: something is dead, or the server is stopping."""
        if self.status not in ("serving", "starting"):
            raise from_code("UNAVAILABLE", f"the server is {self.status}")

    def suspect(self) -> None:
        """Say that a model is silent for longer than it should be: the launcher asks each one whether it answers."""
        if time.monotonic() > self._suspected + _SUSPECT_EVERY_S:
            self._suspected = time.monotonic()
            with contextlib.suppress(OSError):
                self._file.with_name("suspect").touch(mode=0o600)
