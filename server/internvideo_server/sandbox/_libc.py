"""The C library, with its errors."""

from __future__ import annotations

import ctypes
import os
import signal

libc = ctypes.CDLL(None, use_errno=True)

_SET_PARENT_DEATH_SIGNAL, _SET_NO_NEW_PRIVS = 1, 38


def no_new_privs() -> None:
    """No program that this process starts may have more rights than it has.

    Raises:
        OSError: Refused.
    """
    _prctl(_SET_NO_NEW_PRIVS, 1)


def end_with_parent(parent: int) -> None:
    """Be killed when the parent ends.

    Args:
        parent: Its id before the fork: where it has ended since, this process ends here.
    """
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _prctl(option: int, value: int) -> None:
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")
