"""The original model's reader, as the original uses it. For comparison: see ``_pyav.py`` for what it gets wrong."""

from __future__ import annotations

import os
from functools import partial

import av.error
import numpy as np

os.environ.setdefault("PATH", "")  # decord adds to it, and a decoder has none
import decord.logging
from decord import DECORDError, VideoReader

from internvideo_server.errors import invalid

from ._packets import PacketTable, most_packets
from ._probe import check, check_cost, damaged, open_video
from ._reader import Faults, Take
from ._request import DecodeLimits
from ._timeline import Timeline

decord.logging.set_level(decord.logging.QUIET)

_BATCH_BYTES = 64 << 20  # full-size frames read at once


class DecordReader:
    """Reads frames of one file. See :class:`internvideo_server.preprocessing.video._reader.Reader`."""

    def __init__(self, path: str, container: str, limits: DecodeLimits, threads: int) -> None:
        self._limits = limits
        try:
            file, stream = open_video(path, container)
            with file:
                check(file, stream, limits)
                self._size = stream.codec_context.width, stream.codec_context.height
                self._table = PacketTable(file, stream, lambda: open_video(path, container), limits)
        except av.error.FFmpegError as error:
            raise damaged(error) from None
        if not self._table.frame_count:
            raise invalid("the video shows no frame: it is damaged, or its edit list hides all of it; send another file", "url")
        self._step = max(1, _BATCH_BYTES // (3 * self._size[0] * self._size[1]))
        try:
            self._reader = VideoReader(path, num_threads=threads)
            self.timeline = Timeline(len(self._reader), float(self._reader.get_avg_fps()))
        except (DECORDError, RuntimeError, AssertionError):  # decord asserts its frame count
            raise invalid(
                "the video cannot be opened: it is damaged, cut off, or of a codec that is not read; convert it", "url"
            ) from None

    def check(self, frames: list[int]) -> None:
        """Refuse what takes its one decoder too long: it counts frames otherwise, but skips by the same key frames."""
        last = self._table.frame_count - 1
        segments = self._table.segments(sorted({min(number, last) for number in frames}))
        check_cost(most_packets(segments, decoders=1), *self._size, self._limits)

    def read(self, frames: list[int], take: Take) -> Faults:
        """Decode the frames in batches."""
        for first in range(0, len(frames), self._step):
            numbers = frames[first : first + self._step]
            try:
                batch = self._reader.get_batch(numbers).asnumpy()  # [n, height, width, 3]
            except (DECORDError, RuntimeError):
                which = f"the frames {numbers[0]} to {numbers[-1]} of {self.timeline.frame_count} cannot all be read"
                raise invalid(f"{which}: the video is damaged or cut off; send it again", "url") from None
            for number, frame in zip(numbers, batch, strict=True):
                take(number, partial(np.asarray, frame))
        return Faults()
