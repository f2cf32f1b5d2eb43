"""Which frames of a video the model sees: the original model's own formula."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from internvideo_server.errors import invalid
from internvideo_server.limits import FRAMES_PER_GROUP

from ._timeline import Timeline

_FEWEST_BY_DURATION = 128  # the original's


@dataclass(frozen=True)
class FrameSampling:
    """What a request says about sampling; ``None`` = not said.

    Args:
        num_frames: How many frames, a positive multiple of 4.
        fps: Frames per second instead of a number; the count is rounded to a multiple of 4 and kept within [4, max_frames].
        start: Where to begin, in seconds; below 0: so long before the video's end.
        end: Where to end, in seconds; beyond the video's end means its end.
        max_frames: The request's own limit for ``fps`` and ``by_duration``.
        by_duration: As many frames as the original takes for the video's length.
    """

    num_frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None
    max_frames: int | None = None
    by_duration: bool = False

    def most(self, max_frames: int) -> int:
        """The most frames, by the server's limit and the request's own."""
        if self.max_frames is None:
            return max_frames
        return min(max_frames, self.max_frames // FRAMES_PER_GROUP * FRAMES_PER_GROUP)

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
        if self.by_duration and self.fps is not None:
            raise invalid("give num_frames or fps, not both", _field(param, "fps"))
        if self.max_frames is not None:
            if self.fps is None and not self.by_duration:
                raise invalid('max_frames is for fps and for num_frames "auto": leave it out', _field(param, "max_frames"))
            if self.max_frames < FRAMES_PER_GROUP:
                text = f"max_frames must be {FRAMES_PER_GROUP} or more, got {self.max_frames}"
                raise invalid(text, _field(param, "max_frames"))
        if self.start is not None and not math.isfinite(self.start):
            raise invalid(f"start must be a time in seconds, got {self.start}", _field(param, "start"))
        if self.end is not None and not (math.isfinite(self.end) and self.end >= 0):
            raise invalid(f"end must be a time in seconds, 0 or later, got {self.end}", _field(param, "end"))
        if self.end is not None and max(0.0, self.start or 0.0) >= self.end:
            raise invalid(f"start ({self.start or 0.0} s) must be before end ({self.end} s)", _field(param, "start"))

    def indices(self, video: Timeline, *, default_frames: int, max_frames: int) -> list[int]:
        """The frame numbers to read, rising, with repeats where the video has fewer frames than asked for.

        Args:
            video: Its frames and their moments, as its reader counts them.
            default_frames: How many frames if the request does not say, a multiple of 4.
            max_frames: The server's limit.

        Raises:
            ServingError: INVALID_ARGUMENT: an option is wrong or not possible with this video, or the range begins after its end.
        """
        self.check(max_frames)
        if self.start is not None and self.start < 0:
            if not video.fps and video.frame_count > 1:
                text = "start is not possible: this video does not say how many frames it has a second; leave it out"
                raise invalid(text, "start")
            counted = replace(self, start=max(0.0, video.seconds + self.start))
            return counted.indices(video, default_frames=default_frames, max_frames=max_frames)
        for name, value in (("fps", self.fps), ("start", self.start), ("end", self.end)):
            if value and not video.fps and video.frame_count > 1:  # a single frame needs no rate
                text = f"{name} is not possible: this video does not say how many frames it has a second; leave it out"
                raise invalid(text, name)
        if self._is_beyond(video):
            text = f"start ({self.start} s) is beyond the end of the video ({video.seconds:.2f} s): begin earlier"
            raise invalid(text, "start")
        num_frames = self.num_frames or default_frames
        if self.by_duration:
            num_frames = min(frames_for_duration(video), self.most(max_frames))
        begin, end = self.start or 0.0, min(video.seconds, math.inf if self.end is None else self.end)
        if self.fps is not None:
            num_frames = frames_for_rate(end - begin, self.fps, self.most(max_frames))
        if video.bounds is None or (self.start is None and self.end is None and self.fps is None):
            return sample_indices(video.frame_count, video.fps, num_frames, self.start, self.end)
        if self.fps is not None:  # even in time, whatever the video's rate does
            return [video.shown_at(begin + (end - begin) * (i + 0.5) / num_frames) for i in range(num_frames)]
        first = video.shown_at(begin)
        return _middles(first, max(first, video.last_before(end)), num_frames)

    def fewest(self, default_frames: int, max_frames: int) -> int:
        """Frames that any video gives at least, known without it; without a rate or a rule exactly so many."""
        if self.by_duration:
            return min(_FEWEST_BY_DURATION, self.most(max_frames))
        return FRAMES_PER_GROUP if self.fps is not None else self.num_frames or default_frames

    def _is_beyond(self, video: Timeline) -> bool:
        if not self.start:
            return False
        if video.bounds is not None:
            return self.start >= video.seconds
        return round(min(self.start * video.fps, video.frame_count)) > video.frame_count - 1


def frames_for_duration(video: Timeline) -> int:
    """The original's ``get_num_frames_by_duration``: one a second in groups of 4, from 128 to 512."""
    seconds = (video.frame_count - 1) / video.fps if video.fps else video.seconds
    return max(_FEWEST_BY_DURATION, min(512, FRAMES_PER_GROUP * (int(seconds // FRAMES_PER_GROUP) or 1)))


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
    return _middles(first, last, num_frames)


def _middles(first: int, last: int, num_frames: int) -> list[int]:
    segment = float(last - first) / num_frames
    return [int(first + segment / 2 + np.round(segment * i)) for i in range(num_frames)]


def _field(param: str | None, name: str) -> str:
    return f"{param}.{name}" if param else name
