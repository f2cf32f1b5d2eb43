"""Landlock by its three system calls, for which glibc has no functions."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

from ._libc import libc

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_GIVE_VERSION = 1
_RULE_PATH_BENEATH = 1
_READ_FILE = 1 << 2
# Each version of the interface brought more that can be taken away.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}  # refer, truncate, ioctl on devices
_TCP = {4: 0b11}  # bind, connect
_SCOPES = {6: 0b11}  # abstract Unix sockets, signals


def version() -> int:
    """Of the kernel's interface; 0: it has none, or it is off."""
    return max(0, int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_GIVE_VERSION))))


def restrict(readable: Iterable[int]) -> bool:
    """Take away every file but these, TCP, and signals to processes outside. Needs ``no_new_privs``.

    Args:
        readable: Descriptors of the files that may be opened again, for reading. Memory without a name (memfd) always may.

    Returns:
        Whether the kernel has done it.

    Raises:
        OSError: It has Landlock, but refuses.
    """
    known = version()
    if not known:
        return False
    handled = [_up_to(known, rights) for rights in (_FILE_RIGHTS, _TCP, _SCOPES)]
    attributes = struct.pack("=QQQ", *handled)
    ruleset = _check(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)))
    try:
        for fd in readable:
            rule = struct.pack("=Qi", _READ_FILE, fd)
            if libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, ctypes.c_uint32(0)):
                if ctypes.get_errno() != errno.EBADFD:  # a memfd, which needs no rule
                    _check(-1)
        _check(libc.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)
    return True


def _up_to(known: int, rights: dict[int, int]) -> int:
    return sum(bits for since, bits in rights.items() if since <= known)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return result
