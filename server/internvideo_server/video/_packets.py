"""Where each frame of a video lies in its file, and which packets must be decoded to get some of them."""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt


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

    Frames are numbered as decord (and so the original model) numbers them when it reads from start to end: frame i is the i-th
    that is shown. It counts a frame for every packet, so where an edit list hides some, the last one shown stands for the rest.
    Decoded frames are recognised by their time stamp: nothing is counted from a key frame on, which is where decord goes wrong
    in open GOPs.

    Args:
        container: Opened, at its beginning; read to its end.
        stream: Of that container.

    Attributes:
        frame_count: Frames of the video, which is its packets.
        seekable: Whether frames can be told by their time stamp. If not, they must be counted from the file's start.
        pts: int64 [packets], time stamps in the order of the file; empty where not ``seekable``.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        pts: list[int | None] = []
        keys: list[int] = []
        hidden: list[int] = []
        for packet in container.demux(stream):
            if packet.size == 0:
                continue  # the mark of the end
            if packet.is_keyframe:
                keys.append(len(pts))
            if packet.is_discard or _is_reference_only(packet, stream.codec_context.name):
                hidden.append(len(pts))
            pts.append(packet.pts)
        self._shown_count = len(pts) - len(hidden)
        self.frame_count = len(pts) if self._shown_count else 0
        known = [stamp for stamp in pts if stamp is not None]
        self.seekable = len(set(known)) == len(pts)
        self.pts: npt.NDArray[np.int64] = np.array(known if self.seekable else [], np.int64)
        by_time = np.argsort(self.pts)  # packets in the order of presentation
        self._shown = by_time[~np.isin(by_time, hidden)]  # frame number -> packet number
        # Dictionaries, for these are asked at every packet by all decoders, which take turns with Python.
        self._packets: dict[int | None, int] = {stamp: number for number, stamp in enumerate(self.pts.tolist())}
        self._frames: dict[int | None, int] = {stamp: number for number, stamp in enumerate(self.pts[self._shown].tolist())}
        self._keys = np.array(keys, np.int64)

    def packet_number(self, pts: int | None) -> int | None:
        """The packet with this time stamp; None if there is none."""
        return self._packets.get(pts)

    def frame_number(self, pts: int | None) -> int | None:
        """The shown frame with this time stamp; None if there is none."""
        return self._frames.get(pts)

    def shown(self, frame: int) -> int:
        """The frame that stands for a frame number: itself, or the last one that is shown."""
        return min(frame, self._shown_count - 1)

    def segments(self, frames: list[int]) -> list[Segment]:
        """Plan the decoding of some frames: packets between key frames that none of them needs are left out.

        Args:
            frames: Numbers of shown frames, rising, without repeats.
        """
        if not self.seekable:
            return [Segment(0, self.frame_count - 1, frames)]
        starts: dict[int, list[int]] = {}
        for frame in frames:
            starts.setdefault(self._key_packet(frame), []).append(frame)
        return [Segment(first, int(self._shown[wanted].max()), wanted) for first, wanted in starts.items()]

    def _key_packet(self, frame: int) -> int:
        """The last key frame that is before a frame in the file *and* in time: what an open GOP shows before its own key frame
        needs the one before that.
        """
        packet = self._shown[frame]
        keys = self._keys[: np.searchsorted(self._keys, packet, "right")]
        earlier = keys[self.pts[keys] <= self.pts[packet]]
        return int(earlier[-1]) if len(earlier) else 0


def _is_reference_only(packet: av.Packet[av.VideoStream], codec: str) -> bool:
    """VP8's alternative reference frames are packets of their own in WebM and never shown (VP9 packs them with others)."""
    return codec in ("vp8", "libvpx") and not bytes(memoryview(packet)[:1])[0] & 0x10
