"""The launcher's one error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LaunchError(RuntimeError):
    """The server cannot be started; the message says what is wrong and what to do about it, for the person at the terminal."""


@contextmanager
def refused_by_the_system(what: str = "") -> Iterator[None]:
    """Tell an OSError as a LaunchError.

    Args:
        what: Whose files they are, and what to do; the system's words follow.
    """
    try:
        yield
    except OSError as error:
        raise LaunchError(f"{what}: {error}" if what else str(error)) from error
