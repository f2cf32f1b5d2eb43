"""What a reader of video files is. There is one for every file (``_pyav.py``), and the original's (``_decord.py``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ._resize import Pixels
from ._timeline import Timeline

Picture = Callable[[], Pixels]  # turns a decoded frame into an RGB picture: work for whichever thread has time
Take = Callable[[int, Picture], None]  # frame number, picture


@dataclass(frozen=True)
class Faults:
    """What was not read as it was recorded.

    Attributes:
        damaged: Frames that were given, but show damage of their own or of a frame that they refer to.
        missing: Frames that could not be read.
    """

    damaged: frozenset[int] = frozenset()
    missing: frozenset[int] = frozenset()


class Reader(Protocol):
    """Reads frames of one file.

    Attributes:
        timeline: The video's frames and when they are shown.

    Raises (when it is made):
        ServingError: INVALID_ARGUMENT: there is no video in the file that it can read.
    """

    timeline: Timeline

    def check(self, frames: list[int]) -> None:
        """Refuse what takes too long to decode.

        Args:
            frames: As for :meth:`read`.

        Raises:
            ServingError: INVALID_ARGUMENT with the numbers.
        """
        ...

    def read(self, frames: list[int], take: Take) -> Faults:
        """Decode frames, each of them once.

        Args:
            frames: Frame numbers, rising, without repeats.
            take: Is given each of them, in any order, by several threads. What it raises ends the reading.

        Returns:
            Frames that are damaged or did not come.

        Raises:
            ServingError: INVALID_ARGUMENT: the file cannot be read on.
        """
        ...
