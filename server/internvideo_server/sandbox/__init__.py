"""A process gives up, for good, what it needs no more: files, sockets, programs, other processes.

Two layers of Linux, after ``no_new_privs``: Landlock (files, TCP, signals) and a seccomp filter (system calls). Neither needs a
capability, and where the kernel lacks one, the other holds alone: :func:`tried` finds out what holds, by trying.
"""

from ._libc import end_with_parent
from ._probe import Held, tried, tried_elsewhere
from ._sandbox import Sandbox

__all__ = ["Held", "Sandbox", "end_with_parent", "tried", "tried_elsewhere"]
