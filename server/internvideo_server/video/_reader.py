"""What a reader of video files is. There is one for every file (``_pyav.py``), and the original's (``_decord.py``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from internvideo_server.video._resize import Pixels

Picture = Callable[[], Pixels]  # turns a decoded frame into an RGB picture: work for whichever thread has time
Take = Callable[[int, Picture], None]  # frame number, picture


class Reader(Protocol):
    """Reads frames of one file.

    Attributes:
        frame_count: Frames of the video, >= 1.
        fps: Average frames per second.

    Raises (when it is made):
        ServingError: INVALID_ARGUMENT: there is no video in the file that it can read.
    """

    frame_count: int
    fps: float

    def read(self, frames: list[int], take: Take) -> None:
        """Decode frames, each of them once.

        Args:
            frames: Frame numbers, rising, without repeats.
            take: Is given each of them, in any order, by several threads. What it raises ends the reading.

        Raises:
            ServingError: INVALID_ARGUMENT: not all of them can be read.
        """
        ...
