"""Both layers, in their order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from . import _landlock, _libc, _seccomp


class Sandbox:
    """What a process closes around itself. Made before a fork, closed after it, by the only thread.

    Import everything before: no file can be opened then but those that are named. A kernel without one of the layers leaves that
    one out.

    Args:
        devices: The wider profile, for a process that works on a GPU: files can be opened, for its driver does so at any time.
    """

    def __init__(self, *, devices: bool = False) -> None:
        self._devices = devices
        self._filter = _seccomp.Filter(writable=devices) if _seccomp.present() else None

    def close(self, readable: Iterable[int] = ()) -> None:
        """Give up everything else, for good.

        Args:
            readable: Descriptors of files that may be opened again by ``/proc/self/fd``, for reading.

        Raises:
            OSError: Landlock is there, but refuses.
        """
        _libc.no_new_privs()
        if not self._devices:
            _landlock.restrict(readable)
        if self._filter is not None:
            with contextlib.suppress(OSError):  # a kernel without seccomp's filters
                self._filter.load()
