"""When the frames of a video are shown."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Timeline:
    """The moments of a video's frames, in seconds from the first one.

    Attributes:
        frame_count: Frames of the video, >= 1.
        fps: Frames per second as the file says; 0: it does not. Not to be trusted where ``bounds`` are given.
        bounds: float64 [frame_count + 1]: when each frame begins, and when the last one ends. None where the frames are evenly
            spaced (or nothing else is known): frame i then begins at i / fps.
    """

    frame_count: int
    fps: float
    bounds: npt.NDArray[np.float64] | None = None

    @classmethod
    def of(
        cls, stamps: npt.NDArray[np.int64] | None, last_duration: int, time_base: Fraction, rate: float, frame_count: int
    ) -> Timeline:
        """From a file's time stamps.

        Args:
            stamps: Of its frames, rising, in ``time_base``; None: it has none.
            last_duration: Of the last frame, in ``time_base``; 0: not known.
            time_base: Seconds of a unit.
            rate: What its header says of frames per second; 0: nothing.
            frame_count: Frames.
        """
        if stamps is None or len(stamps) < 2:
            return cls(frame_count, rate)
        begins = (stamps - stamps[0]) * float(time_base)
        usual = float(np.median(np.diff(begins)))
        last = last_duration * float(time_base) if last_duration else (1 / rate if rate else usual)
        bounds = np.append(begins, begins[-1] + max(last, 1e-6))
        for fps in (rate, (frame_count - 1) / begins[-1] if begins[-1] else 0.0):  # some headers count twice what they hold
            if fps and np.abs(begins * fps - np.arange(frame_count)).max() <= 0.5:
                return cls(frame_count, float(fps))
        return cls(frame_count, rate or frame_count / float(bounds[-1]), bounds)

    @property
    def seconds(self) -> float:
        """Length of the video; 0: not known."""
        if self.bounds is not None:
            return float(self.bounds[-1])
        return self.frame_count / self.fps if self.fps else 0.0

    def begins(self, frames: list[int]) -> list[float]:
        """When frames begin; empty where that is not known."""
        if self.bounds is not None:
            return [float(second) for second in self.bounds[frames]]
        return [frame / self.fps for frame in frames] if self.fps else []

    def shown_at(self, second: float) -> int:
        """The frame that is on the screen at a moment."""
        if self.bounds is None:
            raise ValueError("only for videos of variable rate")
        return max(0, int(np.searchsorted(self.bounds[:-1], second + 1e-9, "right")) - 1)

    def last_before(self, second: float) -> int:
        """The last frame that begins before a moment."""
        if self.bounds is None:
            raise ValueError("only for videos of variable rate")
        return max(0, int(np.searchsorted(self.bounds[:-1], second - 1e-9, "left")) - 1)
