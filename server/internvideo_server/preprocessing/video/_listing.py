"""What the packets of a video stream say of themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice

import av
import numpy as np
import numpy.typing as npt

from ._hidden import HIDING_CODECS, is_cut_gif, is_reference_only
from ._mov_tables import sample_times

NO_STAMP = np.iinfo(np.int64).min
# These give pictures no time of their own, or not always: FFmpeg then hands on their order in the file.
_WITHOUT_PRESENTATION_TIMES = {"avi", "asf", "mxf"}
_NEVER_REORDERED = ("Baseline", "Constrained Baseline")
_COMPARED = 24  # packets of which both ways must say the same
_DEEPEST_ORDER = 64  # packets; no codec moves a picture farther


@dataclass(frozen=True)
class Listing:
    """The packets of one video stream, in the order of the file.

    Attributes:
        pts: int64 [packets], time stamps of presentation; ``NO_STAMP``: none.
        keys: int64, numbers of the key frames, rising; the first alone where later ones need what came with an earlier packet (a
            palette, or another header in the middle).
        hidden: bool [packets], whether a player does not show it.
        last_duration: Of the frame that is shown last, in the stream's time base; 0: not known.
    """

    pts: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.bool_]
    last_duration: int

    @classmethod
    def of(cls, container: av.container.InputContainer, stream: av.VideoStream) -> Listing:
        """By the file's index where it has one, else by reading it to its end.

        Args:
            container: Opened, at its beginning; read on.
            stream: Of that container.

        Raises:
            FFmpegError: The file is damaged.
        """
        first = list(islice(container.demux(stream), _COMPARED))
        if stream.codec_context.name not in HIDING_CODECS and (found := _by_index(container, stream, first)):
            return found
        return _by_reading(chain(first, container.demux(stream)), stream.codec_context.name)

    @property
    def starts_undecodable(self) -> bool:
        """Whether something stands in front of the first key frame, in the file or in time."""
        if not len(self.pts):
            return False
        if not len(self.keys) or self.keys[0] != 0:
            return True
        until = self.keys[1] if len(self.keys) > 1 else len(self.pts)
        return bool(((self.pts[:until] < self.pts[0]) & ~self.hidden[:until]).any())

    def is_said_to_be_all_keys(self, stream: av.VideoStream) -> bool:
        """Whether every packet has the mark of a key frame, though the codec has others: as where an index marks none."""
        return len(self.keys) == len(self.pts) > 1 and not stream.codec_context.codec.intra_only

    def is_reordered_without_stamps(self, container: av.container.InputContainer, stream: av.VideoStream) -> bool:
        """Whether the order of the file is that of decoding, and says nothing of that of presentation."""
        codec = stream.codec_context
        vfw = container.format.name.startswith("matroska") and codec.codec_tag.strip("\0")  # AVI's way inside Matroska
        if not vfw and container.format.name not in _WITHOUT_PRESENTATION_TIMES:
            return False
        falls = bool((np.diff(self.pts[self.pts != NO_STAMP]) < 0).any())
        if len(self.keys) == len(self.pts) or (falls and container.format.name == "mxf"):  # with an index it tells
            return False
        return codec.has_b_frames or (codec.name in ("h264", "hevc") and stream.profile not in _NEVER_REORDERED)


def _by_index(
    container: av.container.InputContainer, stream: av.VideoStream, first: list[av.Packet[av.VideoStream]]
) -> Listing | None:
    """Of an MP4 file in one piece, whose index lists its samples one by one; None: it is another one."""
    if not container.format.name.startswith("mov"):
        return None
    entries = [(entry.timestamp, entry.is_keyframe, entry.is_discard, entry.size) for entry in stream.index_entries]
    times = sample_times(container.name.removeprefix("file:"), stream.id, len(entries)) if len(entries) > _COMPARED else None
    if times is None:
        return None
    decoded, keys, hidden, sizes = np.array(entries, np.int64).T
    if not sizes.all():
        return None
    pts = decoded + times[0]
    if any(packet.pts is None for packet in first):
        return None
    # An edit list may move them all, which FFmpeg adds when it hands a packet out.
    pts += first[0].pts - pts[0]
    said = [(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard, packet.size) for packet in first]
    if said != list(zip(*(each[:_COMPARED].tolist() for each in (pts, decoded, keys, hidden, sizes)), strict=True)):
        return None
    numbers = np.flatnonzero(keys)[: 1 if first[0].has_sidedata("palette") else None]
    return Listing(pts, numbers, hidden.astype(bool), int(times[1][np.argmax(pts)]))


def _by_reading(packets: Iterable[av.Packet[av.VideoStream]], codec: str) -> Listing:
    """Packet by packet: of a long video these lines run some hundred thousand times."""
    hides = codec in HIDING_CODECS
    pts: list[int | None] = []
    keys: list[int] = []
    hidden: list[int] = []
    from_start = False
    recent: deque[av.Packet[av.VideoStream]] = deque(maxlen=_DEEPEST_ORDER)
    for packet in packets:
        if packet.size == 0:
            continue  # the mark of the end
        if packet.is_keyframe:
            from_start |= packet.has_sidedata("palette") or packet.has_sidedata("new_extradata")
            keys.append(len(pts))
        if packet.is_discard or (hides and is_reference_only(packet, codec)):
            hidden.append(len(pts))
        else:
            recent.append(packet)
        pts.append(packet.pts)
        last = packet
    if pts and (last.is_corrupt or (codec == "gif" and is_cut_gif(last))):  # the file ends inside the last one
        pts.pop()
        keys, hidden = ([each for each in numbers if each < len(pts)] for numbers in (keys, hidden))
    shown = np.zeros(len(pts), bool)
    shown[hidden] = True
    latest = max(recent, key=lambda packet: NO_STAMP if packet.pts is None else packet.pts, default=None)
    stamps = np.fromiter((NO_STAMP if stamp is None else stamp for stamp in pts), np.int64, len(pts))
    numbers = np.array(keys[: 1 if from_start else None], np.int64)
    return Listing(stamps, numbers, shown, (latest.duration or 0) if latest else 0)
