"""The default reader: FFmpeg through PyAV, by key frames, several at once, exact by time stamp.

Why not decord, the original's reader: its frames are the same where it counts right, but after a seek into an open GOP (HEVC,
MPEG-2 and MPEG-4 by default), or in a file with an edit list, it returns neighbours of the frames that it was asked for, its
old FFmpeg decodes slower, and it reads neither AV1 nor GIF. The figures: the project's ``docs/performance_design.md``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from itertools import chain
from types import TracebackType

import av
import av.error
import av.filter
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from internvideo_server.errors import invalid

from . import _nvdec
from ._fragments import is_fragmented
from ._hidden import is_without_picture
from ._orientation import upright
from ._packets import Opened, PacketTable, Segment, is_intra, most_packets
from ._probe import check, check_cost, damaged, open_video
from ._reader import Faults, Take
from ._request import DecodeLimits
from ._resize import Pixels
from ._timeline import Timeline

_GROUPS_BACK = 2  # where a second try begins
_PICTURES_PER_DECODER = 24  # references, delay, and what waits for the resize
_DECODERS_BYTES = 1 << 30

# Containers whose packets have the same time stamps after a seek. Elsewhere some are guessed from the packets before.
_SEEKABLE = ("mov", "matroska", "avi", "flv", "gif", "mpegts")
# Decoders that take note of skip_frame from packet to packet (libdav1d only when it is opened).
_SKIPPING_CODECS = ("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4")
_conversion = threading.local()  # its tables are kept from frame to frame, by one thread


class PyavReader:
    """Reads frames of one file. See :class:`internvideo_server.preprocessing.video._reader.Reader`."""

    def __init__(self, path: str, container: str, limits: DecodeLimits, threads: int) -> None:
        self._path, self._container, self._threads = path, container, threads
        self._limits = limits
        try:
            with ExitStack() as opened:
                file, stream = open_video(path, container)
                opened.callback(file.close)
                check(file, stream, limits)
                if container == "mov" and not is_fragmented(path):
                    self._check_complete(file, stream)
                self._table = PacketTable(file, stream, lambda: open_video(path, container), limits)
                opened.pop_all()
        except av.error.FFmpegError as error:
            raise damaged(error) from None
        self._on_gpu = limits.reader == "nvdec" and _nvdec.takes(stream.codec_context)
        self._opened: Opened | None = (file, stream)  # the first decoder's, which closes it
        self._width, self._height = stream.codec_context.width, stream.codec_context.height
        picture = self._width * self._height * 3 // 2
        self._most_decoders = max(1, _DECODERS_BYTES // (_PICTURES_PER_DECODER * max(1, picture)))
        table = self._table
        rate, time_base = float(stream.average_rate or 0), stream.time_base or Fraction(1)
        self.timeline = Timeline.of(table.stamps, table.last_duration, time_base, rate, table.frame_count)
        if not table.frame_count:
            raise invalid("the video shows no frame: it is damaged, or its edit list hides all of it; send another file", "url")

    @staticmethod
    def _check_complete(file: av.container.InputContainer, stream: av.VideoStream) -> None:
        """A cut file with its index in front reads like a shorter video."""
        entries = stream.index_entries
        if len(entries) and entries[-1].pos + entries[-1].size > file.size:
            raise invalid("the video cannot be opened: it is cut off; send it again", "url")

    def check(self, frames: list[int]) -> None:
        """Refuse what one of the decoders would take too long for."""
        segments = self._table.segments(frames)
        check_cost(most_packets(segments, self._decoders(segments)), self._width, self._height, self._limits)

    def _decoders(self, segments: list[Segment]) -> int:
        return min(self._threads, len(segments), self._most_decoders)

    def read(self, frames: list[int], take: Take) -> Faults:
        """Decode the segments that hold the frames, longest first, each by one of several decoders."""
        segments = self._table.segments(frames)
        if self._container in _SEEKABLE:  # the others are read in one go by each decoder
            segments.sort(key=lambda segment: -segment.cost)
        decoders = self._decoders(segments)
        queue, failed = iter(segments), threading.Event()
        first, self._opened = self._opened, None

        damaged: set[int] = set()
        missing = set(frames)

        def work(number_of_decoder: int) -> None:
            try:
                opened = None if number_of_decoder or self._on_gpu else first
                threads = round(self._threads / decoders)  # six groups on 16 cores: three each, or four cores idle
                with _Decoder(self._path, self._container, self._table, threads, self._on_gpu, opened) as decoder:
                    while not failed.is_set() and (segment := next(queue, None)):  # (atomic on a list's iterator)
                        for number, frame, is_damaged in decoder.frames(segment):
                            if is_damaged:
                                damaged.add(number)
                            missing.discard(number)
                            take(number, partial(_pixels, frame))
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(decoders) as pool:
            done, _ = wait([pool.submit(work, i) for i in range(decoders)])
        for each in done:
            each.result()
        return Faults(frozenset(damaged), frozenset(missing))


class _Decoder:
    """A file and a decoder of its own for one thread."""

    def __init__(self, path: str, container: str, table: PacketTable, threads: int, on_gpu: bool, opened: Opened | None) -> None:
        self._path, self._container, self._table, self._threads = path, container, table, threads
        self._on_gpu = on_gpu
        self._last = -1 if opened is None else table.packet_count  # the packet that was read last
        self._use(opened or self._open())

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def frames(self, segment: Segment) -> Iterator[tuple[int, av.VideoFrame, bool]]:
        """The wanted frames of a segment that can be had, with their numbers and whether they show damage."""
        missing = set(segment.wanted)
        # From further back where the "key frame" was none (with gradual refresh it becomes clean some frames later), and from
        # the file's start where a seek led astray.
        starts = list(dict.fromkeys((segment.first, self._table.earlier_key(segment.first, _GROUPS_BACK), 0)))
        for first in starts:
            damaged: dict[int, av.VideoFrame] = {}
            for number, frame, is_damaged in self._decode(first, segment.last, missing):
                if number in missing:
                    if is_damaged:
                        damaged[number] = frame
                        continue
                    missing.discard(number)
                    yield number, _nvdec.download(frame), False
            if not missing:
                return
            if first != segment.first or len(starts) == 1:
                for number in missing & damaged.keys():
                    missing.discard(number)
                    yield number, _nvdec.download(damaged[number]), True

    def _decode(self, first: int, last: int, wanted: set[int]) -> Iterator[tuple[int | None, av.VideoFrame, bool]]:
        """Frames with their numbers, of the packets from ``first`` to ``last``, and whether they show damage."""
        table, codec, damaged = self._table, None, False
        number_shown = -1 - table.leading
        without_picture = 0  # packets that were given to the decoder: each is an error, which may come later
        skipping = table.seekable and self._stream.codec_context.name in _SKIPPING_CODECS
        for number, packet in chain(self._packets(first, last), [(last + 1, None)]):
            codec = codec or self._stream.codec_context
            if packet:
                # What nothing refers to and nobody wants is not decoded.
                needed = not skipping or table.frame_number(packet.pts) in wanted
                codec.skip_frame = "DEFAULT" if needed else "NONREF"
                without_picture += is_without_picture(packet, codec)
            try:
                frames = codec.decode(packet)
            except av.error.FFmpegError:
                frames = []
                damaged = damaged or (number >= table.first_shown and not without_picture)
                without_picture = max(0, without_picture - 1)
            for frame in frames:
                before = number_shown
                known = table.frame_number(frame.pts) if table.seekable else before + 1
                number_shown = before if known is None else known
                # Some decoders say nothing of what they leave out.
                lost = not skipping and -1 < before < number_shown - 1 and table.lost(before, number_shown, last)
                renewed = table.is_key(frame.pts) if table.seekable else is_intra(frame)  # libdav1d says so of copies as well
                damaged = frame.is_corrupt or ((damaged or lost) and not renewed)
                yield known, frame, damaged

    def _packets(self, first: int, last: int) -> Iterator[tuple[int, av.Packet[av.VideoStream]]]:
        """Packets with their numbers, from ``first`` to ``last``."""
        if -1 < self._last < first and self._container not in _SEEKABLE:
            self._stream.codec_context.flush_buffers()
        elif self._table.seekable and self._container in _SEEKABLE and first:
            self._file.seek(int(self._table.pts[first]), stream=self._stream)
        elif self._last >= first:
            self._reopen()
        packets = self._numbered()
        head = next(packets, None)
        if head is None or head[0] > first:  # the container's index led too far
            self._reopen()
            packets = self._numbered()
            head = next(packets, None)
        for number, packet in chain([head] if head else [], packets):
            if number >= first:
                yield number, packet
            if number >= last:
                return

    def _reopen(self) -> None:
        """Back to the file's start, which not every container can seek to."""
        self._file.close()
        self._last = -1
        self._use(self._open())

    def _numbered(self) -> Iterator[tuple[int, av.Packet[av.VideoStream]]]:
        number = self._last if self._container not in _SEEKABLE else -1
        for packet in self._file.demux(self._stream):
            if packet.size:  # not the mark of the end
                known = self._table.packet_number(packet.pts) if self._table.seekable else number + 1
                number = number if known is None else known  # a frame that is never shown counts with the one before
                self._last = number
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
    if frame.interlaced_frame:
        frame = _in_one_piece(frame)
    rgb = _conversion.reformatter.reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
    plane = rgb.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(rgb.height, plane.line_size)
    pixels = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
    return upright(pixels, frame)


def _in_one_piece(frame: av.VideoFrame) -> av.VideoFrame:
    """The same picture without its mark of being interlaced, by which the newest swscale converts each field by itself: neither
    the original's reader nor ffmpeg's program does.
    """
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    source.link_to(mark := graph.add("setfield", "prog"))
    mark.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull()  # type: ignore[return-value]  # a frame of sound or video, say PyAV's types
