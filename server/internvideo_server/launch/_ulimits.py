"""What the shell, systemd or Docker allow a process: too little of it is said before anything is started."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from ._errors import LaunchError

_GIB = 1 << 30
_MOST_DESCRIPTORS = 65536


@dataclass(frozen=True)
class _Limit:
    number: int  # of the resource module
    least: int
    name: str
    how: str
    unit: int = 1


_LIMITS = (
    # Sockets of the API, and a descriptor for each medium that is kept.
    _Limit(resource.RLIMIT_NOFILE, 1024, "open files", "ulimit -Hn, LimitNOFILE=, --ulimit nofile"),
    # torch reserves far more than it uses: 4 to 5 GiB for each model's process on a CPU, and CUDA some dozens.
    _Limit(resource.RLIMIT_AS, 16 * _GIB, "KiB of address space", "ulimit -v unlimited, LimitAS=infinity", 1024),
    _Limit(resource.RLIMIT_DATA, 8 * _GIB, "KiB of data", "ulimit -d unlimited, LimitDATA=infinity", 1024),
    _Limit(resource.RLIMIT_FSIZE, 16 * _GIB, "KiB in a file", "ulimit -f unlimited, LimitFSIZE=infinity", 1024),
    # Threads count, and those of this user's other programs.
    _Limit(resource.RLIMIT_NPROC, 512, "processes and threads of this user", "ulimit -u, LimitNPROC=, --ulimit nproc"),
)


def raise_limits() -> None:
    """Raise each soft limit as far as is allowed; what the launcher starts inherits it.

    Raises:
        LaunchError: One is too low all the same; the message says how to raise it.
    """
    for limit in _LIMITS:
        soft, hard = resource.getrlimit(limit.number)
        if hard != resource.RLIM_INFINITY and hard < limit.least:
            raise LaunchError(
                f"only {hard // limit.unit} {limit.name} are allowed, {limit.least // limit.unit} are the least: raise the limit "
                f"({limit.how})"
            )
        wanted = hard
        if limit.number == resource.RLIMIT_NOFILE:  # some programs close every possible descriptor one by one
            wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or soft < wanted):
            resource.setrlimit(limit.number, (wanted, hard))
