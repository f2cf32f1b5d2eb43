"""Typed errors that keep their code on the way through Triton.

Triton's gRPC streams carry an error as text alone (``InferenceServerException.status()`` is None there), and an ensemble
puts its own words in front. So the code stands in the text, in one stable form that a client can find anywhere in it::

    in ensemble 'internvideo2_5', [INVALID_ARGUMENT param=messages.0.content.1] num_frames must be a multiple of 4, got 3
"""

from __future__ import annotations

import errno
import re
from enum import StrEnum


class ErrorCode(StrEnum):
    """gRPC's status names, as far as the models use them."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"  # the request can never succeed as it is
    PERMISSION_DENIED = "PERMISSION_DENIED"  # a path or host outside what the operator allows
    NOT_FOUND = "NOT_FOUND"  # the media does not exist
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"  # a bounded queue is full: try again later
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"  # the time allowed for a stage is over
    UNAVAILABLE = "UNAVAILABLE"  # something the request needs is not reachable at the moment
    CANCELLED = "CANCELLED"  # ended by the client (`stop`, or a cancelled call)
    INTERNAL = "INTERNAL"  # a fault of the server


class ServingError(Exception):
    """An error with a code, a message that says what to do, and the request field at fault, if one is.

    Args:
        code: What kind of fault it is.
        message: For people: what is wrong, with the numbers, and what would be right.
        param: The field of the request, in the adapter's JSON path form (``messages.0.content.1.video_url.url``).
    """

    def __init__(self, code: ErrorCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param

    @property
    def text(self) -> str:
        """The coded one-line form that travels through Triton."""
        param = f" param={self.param}" if self.param else ""
        return f"[{self.code}{param}] {' '.join(self.message.split())}"


_SHORT_OF = {
    errno.EMFILE: "open files (ulimit -n)",
    errno.ENFILE: "open files",
    errno.ENOMEM: "memory",
    errno.ENOSPC: "room on a disk or in /dev/shm",
}
# Words of Triton's Python backend, torch and Python where the type says nothing.
_SHORT_WORDS = (
    (re.compile(r"shared memory pool|No space left", re.I), "room in /dev/shm (--shm-size)"),
    (re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory", re.I), "memory"),
    (re.compile(r"can't start new thread", re.I), "threads (ulimit -u)"),
)


def short_of(error: BaseException) -> str | None:
    """What the host has too little of at the moment, where that is why ``error`` was raised."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError):
        return _SHORT_OF.get(error.errno or 0)
    return next((what for pattern, what in _SHORT_WORDS if pattern.search(str(error))), None)


def shortage(error: BaseException) -> ServingError | None:
    """UNAVAILABLE, where ``error`` was raised because the host has too little of something at the moment."""
    lacking = short_of(error)
    if lacking is None:
        return None
    return ServingError(ErrorCode.UNAVAILABLE, f"the server is short of {lacking}; try again in a moment")


def invalid(message: str, param: str | None = None) -> ServingError:
    """An INVALID_ARGUMENT error, by far the most frequent kind."""
    return ServingError(ErrorCode.INVALID_ARGUMENT, message, param)
