"""Packets that are never shown: pictures that others refer to, with a packet of their own, and those without a whole picture."""

from __future__ import annotations

import av

_VP8, _VP9 = ("vp8", "libvpx"), ("vp9", "libvpx-vp9")
HIDING_CODECS = _VP8 + _VP9
_H264_MESSAGES = {6, 7, 8, 9}  # messages, parameters, delimiters
_LARGEST_MESSAGE = 1024  # bytes


def is_reference_only(packet: av.Packet[av.VideoStream], codec: str) -> bool:
    """Whether a packet of VP8 or VP9 holds an alternative reference frame alone.

    VP8 always gives them a packet of their own; VP9 joins them with a shown frame into a "superframe" in most files.
    """
    if codec in _VP8:
        return not memoryview(packet)[0] & 0x10
    if codec in _VP9:
        data = memoryview(packet)
        return not _is_vp9_superframe(data) and not _shows_vp9(data[0])
    return False


def _is_vp9_superframe(data: memoryview) -> bool:
    """Annex B: an index at the end, with the same byte before and after it."""
    mark = data[-1]
    if mark & 0xE0 != 0xC0:
        return False
    size = 2 + ((mark >> 3 & 3) + 1) * ((mark & 7) + 1)
    return len(data) >= size and bool(data[-size] == mark)


def _shows_vp9(head: int) -> bool:
    """The uncompressed header: marker (2 bits), profile (2, and a reserved bit for profile 3), show_existing, type, show."""
    head = head << 1 & 0xFF if head & 0x30 == 0x30 else head
    return bool(head & 0x08) or bool(head & 0x02)


def is_cut_gif(packet: av.Packet[av.VideoStream]) -> bool:
    """Whether a picture of a GIF lacks the empty block at its end. (The file's own end, a semicolon, may come with it.)"""
    return not bytes(packet)[-2:].rstrip(b";").endswith(b"\0")


def is_without_picture(packet: av.Packet[av.VideoStream], codec: av.VideoCodecContext) -> bool:
    """Whether a packet of H.264 holds messages alone, as where a demuxer has cut them from their picture."""
    if codec.name != "h264" or packet.size > _LARGEST_MESSAGE:
        return False
    data, place, kinds = bytes(packet), 0, set()
    if (codec.extradata or b"")[:1] == b"\x01":  # behind their lengths
        while place + 5 <= len(data):
            kinds.add(data[place + 4] & 0x1F)
            place += 4 + int.from_bytes(data[place : place + 4])
    else:
        kinds = {unit[0] & 0x1F for unit in data.split(b"\0\0\1")[1:] if unit}
    return bool(kinds) and kinds <= _H264_MESSAGES
