"""The original model's reader, as the original uses it. For comparison: see ``_pyav.py`` for what it gets wrong."""

from __future__ import annotations

from functools import partial

import av.error
import decord.logging
import numpy as np
from decord import DECORDError, VideoReader

from internvideo_server.errors import invalid
from internvideo_server.video._probe import check, damaged, open_video
from internvideo_server.video._reader import Take
from internvideo_server.video._request import DecodeLimits

decord.logging.set_level(decord.logging.QUIET)

_BATCH_BYTES = 64 << 20  # full-size frames read at once


class DecordReader:
    """Reads frames of one file. See :class:`internvideo_server.video._reader.Reader`."""

    def __init__(self, path: str, container: str, limits: DecodeLimits, threads: int) -> None:
        try:
            file, stream = open_video(path, container)
        except av.error.FFmpegError as error:
            raise damaged(error) from None
        with file:
            check(file, stream, limits)
            self._step = max(1, _BATCH_BYTES // (3 * stream.codec_context.width * stream.codec_context.height))
        try:
            self._reader = VideoReader(path, num_threads=threads)
            self.frame_count, self.fps = len(self._reader), float(self._reader.get_avg_fps())
        except (DECORDError, RuntimeError, AssertionError):  # decord asserts its frame count
            raise invalid("the video cannot be opened: it is damaged, cut off, or of a codec that is not read", "url") from None

    def read(self, frames: list[int], take: Take) -> None:
        """Decode the frames in batches."""
        for first in range(0, len(frames), self._step):
            numbers = frames[first : first + self._step]
            try:
                batch = self._reader.get_batch(numbers).asnumpy()  # [n, height, width, 3]
            except (DECORDError, RuntimeError):
                which = f"the frames {numbers[0]} to {numbers[-1]} of {self.frame_count} cannot all be read"
                raise invalid(f"{which}: the video is damaged or cut off", "url") from None
            for number, frame in zip(numbers, batch, strict=True):
                take(number, partial(np.asarray, frame))
