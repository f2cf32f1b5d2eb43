"""Which frames of a video the model sees: the original model's own formula."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from internvideo_server.errors import invalid
from internvideo_server.limits import FRAMES_PER_GROUP


@dataclass(frozen=True)
class Sampling:
    """What a request says about sampling; ``None`` = not said.

    Args:
        num_frames: How many frames, a positive multiple of 4.
        fps: Frames per second instead of a number; the count is rounded to a multiple of 4 and kept within [4, max_frames].
        start: Where to begin, in seconds.
        end: Where to end, in seconds; beyond the video's end means its end.
    """

    num_frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None

    def check(self, max_frames: int, param: str | None = None) -> None:
        """Refuse what no video can satisfy; needs no video, so call it before fetching one.

        Args:
            max_frames: The server's limit.
            param: The request field that holds the options (``messages.0.content.1.video_url``).

        Raises:
            ServingError: INVALID_ARGUMENT with the field and the numbers.
        """
        if self.num_frames is not None:
            if self.fps is not None:
                raise invalid("give num_frames or fps, not both", _field(param, "fps"))
            n = self.num_frames
            if n <= 0 or n % FRAMES_PER_GROUP or n > max_frames:
                raise invalid(
                    f"num_frames must be a multiple of {FRAMES_PER_GROUP} from {FRAMES_PER_GROUP} to {max_frames}, got {n}",
                    _field(param, "num_frames"),
                )
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise invalid(f"fps must be greater than 0, got {self.fps}", _field(param, "fps"))
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise invalid(f"{name} must be a time in seconds, 0 or later, got {value}", _field(param, name))
        if self.end is not None and (self.start or 0.0) >= self.end:
            raise invalid(f"start ({self.start or 0.0} s) must be before end ({self.end} s)", _field(param, "start"))

    def indices(self, total_frames: int, video_fps: float, *, default_frames: int, max_frames: int) -> list[int]:
        """The frame numbers to read, rising, with repeats where the video has fewer frames than asked for.

        Args:
            total_frames: Frames of the video as its reader counts them, >= 1.
            video_fps: Average frames per second of the video; 0: its file does not say.
            default_frames: How many frames if the request does not say, a multiple of 4.
            max_frames: The server's limit.

        Raises:
            ServingError: INVALID_ARGUMENT: an option is wrong or not possible with this video, or the range begins after its end.
        """
        self.check(max_frames)
        for name, value in (("fps", self.fps), ("start", self.start), ("end", self.end)):
            if value and not video_fps and total_frames > 1:  # a single frame needs no rate
                raise invalid(f"{name} is not possible: this video does not say how many frames it has a second", name)
        if self.start and round(min(self.start * video_fps, total_frames)) > total_frames - 1:
            text = f"start ({self.start} s) is beyond the end of the video ({total_frames / video_fps:.2f} s)"
            raise invalid(text, "start")
        num_frames = self.num_frames or default_frames
        if self.fps is not None:
            length = total_frames / video_fps if video_fps else 0.0
            end = min(length, math.inf if self.end is None else self.end)
            num_frames = frames_for_rate(end - (self.start or 0.0), self.fps, max_frames)
        return sample_indices(total_frames, video_fps, num_frames, self.start, self.end)


def frames_for_rate(seconds: float, fps: float, max_frames: int) -> int:
    """How many frames a rate means for a length of video: a multiple of 4 in [4, max_frames]."""
    groups = round(min(seconds * fps, max_frames) / FRAMES_PER_GROUP)
    return FRAMES_PER_GROUP * max(1, min(groups, max_frames // FRAMES_PER_GROUP))


def sample_indices(
    total_frames: int, video_fps: float, num_frames: int, start: float | None = None, end: float | None = None
) -> list[int]:
    """The middle of each of ``num_frames`` equal segments (``get_index`` of the original model's code).

    Args:
        total_frames: Frames of the video.
        video_fps: Average frames per second of the video.
        num_frames: Segments.
        start: Begin of the range in seconds.
        end: End of the range in seconds.

    Returns:
        ``num_frames`` frame numbers within the range. ``np.round`` rounds halves to even, as in the original.
    """
    first = max(0, round((start or 0.0) * video_fps))
    last = total_frames - 1 if end is None else round(min(end * video_fps, total_frames - 1))
    segment = float(last - first) / num_frames
    return [int(first + segment / 2 + np.round(segment * i)) for i in range(num_frames)]


def _field(param: str | None, name: str) -> str:
    return f"{param}.{name}" if param else name
