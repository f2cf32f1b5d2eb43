"""How a start tells what it does and learns that it should not go on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ._errors import LaunchError


class InterruptedStartError(LaunchError):
    """The start was given up on request (a signal)."""


@dataclass(frozen=True)
class Progress:
    """``report`` and ``warn`` take one line for people; ``interrupted`` tells whether to give up."""

    report: Callable[[str], None] = lambda line: None
    warn: Callable[[str], None] = lambda line: None
    interrupted: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Raises: InterruptedStartError, when the start should be given up."""
        if self.interrupted():
            raise InterruptedStartError("stopped while starting")


@contextmanager
def shown(logs: Sequence[Path]) -> Iterator[None]:
    """Copy what is appended to the logs to stderr, from a thread, until the context ends."""
    done = threading.Event()

    def follow() -> None:
        positions = dict.fromkeys(logs, 0)
        while True:
            last_look = done.wait(0.2)
            for log in logs:
                if log.exists():
                    with log.open("rb") as file:
                        file.seek(positions[log])
                        sys.stderr.write(file.read().decode(errors="replace"))
                        positions[log] = file.tell()
            if last_look:
                return

    thread = threading.Thread(target=follow, name="log-follower", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
