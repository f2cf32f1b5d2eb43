"""The default reader: FFmpeg through PyAV, by key frames, several at once, exact by time stamp.

Why not decord, the original's reader: its frames are the same where it counts right, but after a seek into an open GOP (HEVC,
MPEG-2 and MPEG-4 by default), or in a file with an edit list, it returns neighbours of the frames that it was asked for, its
old FFmpeg decodes slower, and it reads neither AV1 nor GIF. The figures: the project's ``docs/performance.md``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from itertools import chain
from types import TracebackType

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from internvideo_server.errors import ServingError, invalid
from internvideo_server.video import _nvdec
from internvideo_server.video._packets import PacketTable, Segment
from internvideo_server.video._probe import check, damaged, open_video
from internvideo_server.video._reader import Take
from internvideo_server.video._request import DecodeLimits
from internvideo_server.video._resize import Pixels

_PICTURES_PER_DECODER = 24  # references, delay, and what waits for the resize
_DECODERS_BYTES = 1 << 30
Opened = tuple[av.container.InputContainer, av.VideoStream]

# Decoders that take note of skip_frame from packet to packet (libdav1d only when it is opened).
_SKIPPING_CODECS = ("h264", "hevc", "mpeg2video", "mpeg4")
_conversion = threading.local()  # its tables are kept from frame to frame, by one thread


class PyavReader:
    """Reads frames of one file. See :class:`internvideo_server.video._reader.Reader`."""

    def __init__(self, path: str, container: str, limits: DecodeLimits, threads: int) -> None:
        self._path, self._container, self._threads = path, container, threads
        try:
            with ExitStack() as opened:
                file, stream = open_video(path, container)
                opened.callback(file.close)
                check(file, stream, limits)
                self._check_complete(file, stream)
                self._table = PacketTable(file, stream)
                opened.pop_all()
        except av.error.FFmpegError as error:
            raise damaged(error) from None
        self._on_gpu = limits.reader == "nvdec" and _nvdec.takes(stream.codec_context)
        self._opened = file, stream  # the first decoder's
        picture = stream.codec_context.width * stream.codec_context.height * 3 // 2
        self._most_decoders = max(1, _DECODERS_BYTES // (_PICTURES_PER_DECODER * max(1, picture)))
        self.fps = float(stream.average_rate or 0)
        self.frame_count = self._table.frame_count
        if not self.frame_count:
            raise invalid("the video cannot be opened: it is damaged or cut off (no frames)", "url")

    @staticmethod
    def _check_complete(file: av.container.InputContainer, stream: av.VideoStream) -> None:
        """A cut file with its index in front reads like a shorter video."""
        entries = stream.index_entries
        if len(entries) and entries[-1].pos + entries[-1].size > file.size:
            raise invalid("the video cannot be opened: it is cut off", "url")

    def read(self, frames: list[int], take: Take) -> None:
        """Decode the segments that hold the frames, longest first, each by one of several decoders."""
        numbers: dict[int, list[int]] = {}  # frame that is shown -> those it stands for
        for frame in frames:
            numbers.setdefault(self._table.shown(frame), []).append(frame)
        segments = sorted(self._table.segments(list(numbers)), key=lambda segment: -segment.cost)
        decoders = min(self._threads, len(segments), self._most_decoders)
        queue, failed = iter(segments), threading.Event()

        def work(number_of_decoder: int) -> None:
            try:
                opened = None if number_of_decoder or self._on_gpu else self._opened
                threads = round(self._threads / decoders)  # six groups on 16 cores: three each, or four cores idle
                with _Decoder(self._path, self._container, self._table, threads, self._on_gpu, opened) as decoder:
                    while not failed.is_set() and (segment := next(queue, None)):  # (atomic on a list's iterator)
                        for shown, frame in decoder.frames(segment):
                            for number in numbers[shown]:
                                take(number, partial(_pixels, frame))
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(decoders) as pool:
            done, _ = wait([pool.submit(work, i) for i in range(decoders)])
        try:
            for each in done:
                each.result()
        except av.error.FFmpegError:
            raise _unreadable(frames, self.frame_count) from None


class _Decoder:
    """A file and a decoder of its own for one thread."""

    def __init__(self, path: str, container: str, table: PacketTable, threads: int, on_gpu: bool, opened: Opened | None) -> None:
        self._path, self._container, self._table, self._threads = path, container, table, threads
        self._on_gpu = on_gpu
        self._at_start = opened is None
        self._use(opened or self._open())

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def frames(self, segment: Segment) -> Iterator[tuple[int, av.VideoFrame]]:
        """The wanted frames of a segment with their numbers, in the order of presentation.

        Raises:
            ServingError: INVALID_ARGUMENT: one of them does not come.
            FFmpegError: The decoder refuses.
        """
        missing = set(segment.wanted)
        # From the file's start where the "key frame" was none: with gradual refresh it becomes clean some frames later.
        for first in dict.fromkeys((segment.first, 0)):
            for number, frame in self._decode(first, segment.last, missing):
                if number in missing and not frame.is_corrupt:
                    missing.discard(number)
                    yield number, _nvdec.download(frame)
            if not missing:
                return
        raise _unreadable(sorted(missing), self._table.frame_count)

    def _decode(self, first: int, last: int, wanted: set[int]) -> Iterator[tuple[int | None, av.VideoFrame]]:
        """Frames with their numbers, of the packets from ``first`` to ``last``."""
        table, codec, count = self._table, None, -1
        for number, packet in self._packets(first):
            codec = self._stream.codec_context
            skipping = table.seekable and codec.name in _SKIPPING_CODECS
            # What nothing refers to and nobody wants is not decoded.
            needed = not skipping or table.frame_number(packet.pts) in wanted
            codec.skip_frame = "DEFAULT" if needed else "NONREF"
            for frame in codec.decode(packet):
                count += 1
                yield (table.frame_number(frame.pts) if table.seekable else count), frame
            if number >= last:
                break
        for frame in codec.decode(None) if codec else ():
            count += 1
            yield (table.frame_number(frame.pts) if table.seekable else count), frame

    def _packets(self, first: int) -> Iterator[tuple[int, av.Packet[av.VideoStream]]]:
        """Packets with their numbers, from ``first`` on."""
        if self._table.seekable and not (self._at_start and first == 0):
            self._file.seek(int(self._table.pts[first]), stream=self._stream)
            self._at_start = False
        elif not self._at_start:
            self._reopen()
        packets = self._numbered()
        head = next(packets, None)
        if head is None or head[0] > first:  # the container's index led too far
            self._reopen()
            packets = self._numbered()
            head = next(packets, None)
        self._at_start = False
        if head is not None:
            yield from (each for each in chain([head], packets) if each[0] >= first)

    def _reopen(self) -> None:
        """Back to the file's start, which not every container can seek to."""
        self._file.close()
        self._use(self._open())

    def _numbered(self) -> Iterator[tuple[int, av.Packet[av.VideoStream]]]:
        number = -1
        for packet in self._file.demux(self._stream):
            if packet.size:  # not the mark of the end
                known = self._table.packet_number(packet.pts) if self._table.seekable else number + 1
                number = number if known is None else known  # a frame that is never shown counts with the one before
                yield number, packet

    def _open(self) -> Opened:
        return open_video(self._path, self._container, _nvdec.accelerator() if self._on_gpu else None)

    def _use(self, opened: Opened) -> None:
        self._file, self._stream = opened
        self._stream.codec_context.thread_type = "AUTO"
        self._stream.codec_context.thread_count = 1 if self._on_gpu else self._threads


def _pixels(frame: av.VideoFrame) -> Pixels:
    """An RGB picture, turned as players show it, in the memory of FFmpeg's frame."""
    if not hasattr(_conversion, "reformatter"):
        _conversion.reformatter = VideoReformatter()
    rgb = _conversion.reformatter.reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
    plane = rgb.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(rgb.height, plane.line_size)
    pixels = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
    turns, skew = divmod(frame.rotation % 360, 90)
    return pixels if skew else np.rot90(pixels, turns)


def _unreadable(frames: list[int], of: int) -> ServingError:
    which = f"the frames {frames[0]} to {frames[-1]} of {of} cannot all be read"
    return invalid(f"{which}: the video is damaged or cut off", "url")
