"""A process that is stuck ends itself, so that it is loaded anew as any dead one is."""

from __future__ import annotations

import faulthandler
import time

_PATIENCE_S = 120.0


class Heartbeat:
    """Ends the process when its heart has not beaten for ``patience_s``, after the stacks of all threads went to its log.

    The clock is Python's fault handler, a thread in C that needs no lock of the interpreter. So it also ends a process in which
    a native call keeps that lock. There is one in a process.

    Args:
        patience_s: Longer than the longest time between two beats on a busy machine.
    """

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._progress: int | None = None
        self._next = 0.0

    def beat(self, progress: int | None) -> None:
        """To be called often. It counts where ``progress`` is another number than last time, or None: there is nothing to do."""
        if progress is not None and progress == self._progress:
            return
        self._progress = progress
        if (now := time.monotonic()) >= self._next:  # winding the clock starts a thread
            self._next = now + self._patience_s / 20
            faulthandler.dump_traceback_later(self._patience_s, exit=True, file=2)

    def close(self) -> None:
        """The process may stand still from now on."""
        faulthandler.cancel_dump_traceback_later()
