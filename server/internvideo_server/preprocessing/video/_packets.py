"""Where each frame of a video lies in its file, and which packets must be decoded to get some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, islice

import av
import av.error
import numpy as np
import numpy.typing as npt

from ._listing import NO_STAMP, Listing
from ._probe import check_cost
from ._request import DecodeLimits

Opened = tuple[av.container.InputContainer, av.VideoStream]
Open = Callable[[], Opened]

# Their decoders tell when a picture has become whole without a key frame; others show what they have.
_TELL_WHEN_WHOLE = ("h264", "hevc")
_TRIED = 16  # packets


@dataclass(frozen=True)
class Segment:
    """A run of packets that starts at a key frame and is decoded by itself.

    Attributes:
        first: Number of its first packet, in file order.
        last: Number of the last packet that must be decoded.
        wanted: Frame numbers to take out of it.
    """

    first: int
    last: int
    wanted: list[int]

    @property
    def cost(self) -> int:
        """Packets to decode."""
        return self.last - self.first + 1


class PacketTable:
    """The packets of one video stream.

    Frames are numbered as they are shown, from 0. What a player does not show is not a frame: pictures outside an edit list,
    those in front of the first one that can be decoded (a file cut inside an open GOP, or begun between key frames), and
    pictures that others only refer to. Decoded frames are recognised by their time stamp: nothing is counted from a key frame
    on, which is where decord goes wrong in open GOPs. Where stamps are missing, repeated or not those of presentation, frames
    are counted as the decoder gives them, from the file's start.

    Args:
        container: Opened, at its beginning; read on.
        stream: Of that container.
        reopen: Opens the same file again; used where some of it must be decoded to know what is shown.
        limits: What that may cost.

    Attributes:
        packet_count: Whole packets of the stream.
        frame_count: Frames of the video.
        seekable: Whether frames can be told by their time stamp. If not, they must be counted from the file's start.
        first_shown: Number of the packet from which on decoding must not fail.
        pts: int64 [packets], time stamps in the order of the file.
        leading: Pictures that the decoder gives before the first frame, where frames are counted.
        stamps: int64 [frames], time stamps in the order of presentation, in the stream's time base; None where it gives none.
        last_duration: Of the last frame, in the stream's time base; 0: not known.

    Raises:
        FFmpegError: The file is damaged.
        ServingError: INVALID_ARGUMENT: all frames must be counted, and that costs too much.
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.VideoStream, reopen: Open, limits: DecodeLimits
    ) -> None:
        found = Listing.of(container, stream)
        if found.is_said_to_be_all_keys(stream) and not _all_intra(reopen):
            found = replace(found, keys=found.keys[:1])  # an index without marks
        self.packet_count = len(found.pts)
        self.pts = found.pts
        self._keys, self._key_set = found.keys, frozenset(found.keys.tolist())
        self.last_duration = found.last_duration
        hidden = found.hidden
        self.first_shown = 0
        if found.starts_undecodable and (start := _first_stamp(reopen, limits)) is not None:
            early = (self.pts < start) & ~hidden
            late = np.flatnonzero(~early & ~hidden)
            self.first_shown = int(late[0]) if len(late) else 0
            hidden = hidden | early
        shown = np.flatnonzero(~hidden)
        real = self.pts[self.pts != NO_STAMP]
        reordered = found.is_reordered_without_stamps(container, stream)
        # A dictionary, for it is asked at every packet by all decoders, which take turns with Python.
        self._packets: dict[int | None, int] = dict(zip(self.pts.tolist(), range(self.packet_count), strict=True))
        without_repeats = len(self._packets) == len(real) + (NO_STAMP in self._packets)
        self.seekable = not reordered and without_repeats and bool((self.pts[shown] != NO_STAMP).all())
        self.stamps: npt.NDArray[np.int64] | None = None
        self.leading = 0
        if self.seekable:
            self._shown = shown[np.argsort(self.pts[shown])]  # frame number -> packet number
            self.frame_count = len(self._shown)
            self.stamps = self.pts[self._shown]
        else:
            self._shown = np.arange(self.packet_count)
            check_cost(self.packet_count, stream.codec_context.width, stream.codec_context.height, limits)
            self.frame_count, self.leading, self.stamps = _counted(
                reopen, self.packet_count, reordered=reordered, from_whole=found.starts_undecodable
            )
        self._frames = np.full(self.packet_count, -1)  # packet number -> frame number
        self._frames[self._shown] = np.arange(len(self._shown))

    def packet_number(self, pts: int | None) -> int | None:
        """The packet with this time stamp; None if there is none."""
        return self._packets.get(pts)

    def frame_number(self, pts: int | None) -> int | None:
        """The shown frame with this time stamp; None if there is none."""
        packet = self._packets.get(pts)
        return None if packet is None or self._frames[packet] < 0 else int(self._frames[packet])

    def is_key(self, pts: int | None) -> bool:
        """Whether the packet with this time stamp is a key frame."""
        return self._packets.get(pts) in self._key_set

    def lost(self, before: int, frame: int, packet: int) -> bool:
        """Whether a decoder that shows one frame after another has left some out, of the packets up to a number."""
        return self.seekable and bool((self._shown[before + 1 : frame] <= packet).any())

    def segments(self, frames: list[int]) -> list[Segment]:
        """Plan the decoding of some frames: packets between key frames that none of them needs are left out.

        Args:
            frames: Numbers of shown frames, rising, without repeats.
        """
        if not self.seekable:
            return [Segment(0, self.packet_count - 1, frames)]
        starts: dict[int, list[int]] = {}
        for frame in frames:
            starts.setdefault(self._key_packet(frame), []).append(frame)
        return [Segment(first, int(self._shown[wanted].max()), wanted) for first, wanted in starts.items()]

    def earlier_key(self, packet: int, groups: int) -> int:
        """The key frame that is a number of groups before a packet, or the file's start."""
        place = int(np.searchsorted(self._keys, packet, "left")) - groups
        return int(self._keys[place]) if place >= 0 else 0

    def _key_packet(self, frame: int) -> int:
        """The last key frame that is before a frame in the file *and* in time: what an open GOP shows before its own key frame
        needs the one before that.
        """
        packet = self._shown[frame]
        keys = self._keys[: np.searchsorted(self._keys, packet, "right")]
        earlier = keys[self.pts[keys] <= self.pts[packet]]
        return int(earlier[-1]) if len(earlier) else 0


def decode_leniently(codec: av.VideoCodecContext, packet: av.Packet[av.VideoStream] | None) -> list[av.VideoFrame]:
    """Frames of a packet that may stand in front of the first one that can be decoded."""
    try:
        return codec.decode(packet)
    except av.error.FFmpegError:
        return []


def most_packets(segments: list[Segment], decoders: int) -> float:
    """How many packets one of several decoders has to decode at least."""
    costs = [segment.cost for segment in segments]
    return max(max(costs), sum(costs) / decoders)


def _first_stamp(reopen: Open, limits: DecodeLimits) -> int | None:
    """When the first frame that can be decoded is shown; None where there is none, or none within the cost of a medium."""
    file, stream = reopen()
    most = int(limits.max_cost * 1e9 / max(1, stream.codec_context.width * stream.codec_context.height))
    with file:
        for packet in islice(file.demux(stream), most):
            for frame in decode_leniently(stream.codec_context, packet if packet.size else None):
                if _is_whole(frame, stream):
                    return frame.pts
    return None


def _all_intra(reopen: Open) -> bool:
    """Whether the first pictures refer to no others, each of which is said to be a key frame."""
    file, stream = reopen()
    with file:
        packets = islice(file.demux(stream), _TRIED)
        return all(is_intra(frame) for packet in packets for frame in decode_leniently(stream.codec_context, packet))


def is_intra(frame: av.VideoFrame) -> bool:
    """Whether a picture refers to no other."""
    return frame.key_frame or frame.pict_type == av.video.frame.PictureType.I


def _continued(stamps: list[int | None]) -> list[int | None]:
    """With stamps for those that the decoder gave when no packet was due, as at the file's end."""
    known = [stamp for stamp in stamps if stamp is not None]
    usual = int(np.median(np.diff(known))) if len(known) > 1 else 0
    for number in range(1, len(stamps)):
        before = stamps[number - 1]
        if stamps[number] is None and before is not None:
            stamps[number] = before + usual
    return stamps


def _is_whole(frame: av.VideoFrame, stream: av.VideoStream) -> bool:
    """Whether a picture near the file's start refers to nothing that is not there."""
    return not frame.is_corrupt and (frame.key_frame or stream.codec_context.name in _TELL_WHEN_WHOLE)


def _counted(reopen: Open, packets: int, *, reordered: bool, from_whole: bool) -> tuple[int, int, npt.NDArray[np.int64] | None]:
    """Decode a file to count its frames.

    Args:
        reopen: Opens it.
        packets: Of it, that are whole.
        reordered: The frames' own stamps are wrong, but those of decoding tell when something is shown, though not what.
        from_whole: It begins with pictures that cannot be decoded.

    Returns:
        How many frames it has, pictures that stand in front of them, and the frames' time stamps if they rise.
    """
    file, stream = reopen()
    stamps: list[int | None] = []
    leading = 0
    with file:
        codec = stream.codec_context
        codec.thread_type = "AUTO"
        whole = islice((packet for packet in file.demux(stream) if packet.size), packets)
        for packet in chain(whole, [None]):
            for frame in decode_leniently(codec, packet):
                if from_whole and not stamps and not _is_whole(frame, stream):
                    leading += 1
                    continue
                # A frame is shown when the packet is due that makes the decoder give it.
                stamps.append(frame.dts if reordered else frame.pts)
    count = len(stamps)
    if reordered:
        stamps = _continued(stamps)
    known = np.array([stamp for stamp in stamps if stamp is not None], np.int64)
    if len(known) != count or (np.diff(known) <= 0).any():
        return count, leading, None
    return count, leading, known
