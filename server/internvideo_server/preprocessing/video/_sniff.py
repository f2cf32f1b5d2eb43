"""What kind of file the first bytes say it is.

FFmpeg guesses formats from content and follows the references of some (playlists, ``concat`` scripts, SDP): a text file called
``.mp4`` could make it open other files and hosts. So nothing reaches FFmpeg unless its first bytes are those of a container on
this list, for which FFmpeg's own guess is then certain as well.
"""

from __future__ import annotations

HEAD_BYTES = 4096  # enough for every signature below

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"sidx", b"moof", b"uuid", b"udta")
# Pictures in the container of MP4: FFmpeg takes the tiles of large ones for videos.
_STILL_BRANDS = {b"avif": "AVIF", **dict.fromkeys((b"heic", b"heix", b"heim", b"heis"), "HEIC"), b"mif1": "HEIF"}
_OTHER_IMAGES = {
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x01\x00": "ICO",
    b"8BPS": "Photoshop",
    b"<svg": "SVG",
    b"%PDF": "PDF",
}
_TS_PACKETS = (188, 192, 204)  # plain; AVCHD and Blu-ray: behind a time code; with error correction
_TS_SYNC, _TS_RUN = 0x47, 8
_PACK = b"\x00\x00\x01\xba"
_HEADS = {
    b"FLV\x01": "flv",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    _PACK: "mpeg",  # a program stream
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c": "asf",
    b"OggS\x00": "ogg",
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01": "mxf",  # its header partition
    b"DKIF\x00\x00": "ivf",
}
# Streams without a container, by their first units: they have no times, and nothing tells where they begin.
_RAW = {
    b"\x00\x00\x01\xb3": "an MPEG video",
    b"\x00\x00\x01\xb0": "an MPEG-4",
    b"\x1f\x07\x00": "a DV",
    b"YUV4MPEG2 ": "a Y4M",
    b"\x12\x00\x0a": "an AV1",
}
_H264_STARTS, _HEVC_STARTS = (7, 9, 6), (32, 33, 35, 39)  # parameter sets, delimiters, messages


def video_container(head: bytes) -> str | None:
    """FFmpeg's name of the container format, ``None`` if it is not one that is read here.

    Args:
        head: The first ``HEAD_BYTES`` bytes of the file.
    """
    if head[4:8] in _ISO_BOXES and not unread_image(head):
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3") and (b"matroska" in head[:128] or b"webm" in head[:128]):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    for start, name in _HEADS.items():
        if head.startswith(start):
            return name
    if _is_transport_stream(head):
        return "mpegts"
    return "mpeg" if _is_program_stream(head) else None


def raw_stream(head: bytes) -> str | None:
    """What kind of stream without a container it is, with its article; None: it does not look like one."""
    for start, name in _RAW.items():
        if head.startswith(start):
            return name
    for start in (b"\x00\x00\x00\x01", b"\x00\x00\x01"):
        if head.startswith(start) and len(head) > len(start) + 1:
            first, second = head[len(start) : len(start) + 2]
            if first & 0x81 == 0 and first >> 1 in _HEVC_STARTS and second & 0xF8 == 0:
                return "an HEVC"
            if first & 0x80 == 0 and first & 0x1F in _H264_STARTS:
                return "an H.264"
    return None


def _is_transport_stream(head: bytes) -> bool:
    """Packets of one size, from wherever the recording begins."""
    for size in _TS_PACKETS:
        for first in range(size):
            marks = head[first::size]
            if len(marks) >= min(_TS_RUN, (len(head) - first) // size) >= 4 and set(marks) == {_TS_SYNC}:
                return True
    return False


def _is_program_stream(head: bytes) -> bool:
    """A unit of a program stream, and where it ends another one, from wherever the recording begins."""
    place = head.find(_PACK[:3])
    while 0 <= place <= len(head) - 18:
        size = _unit_size(head[place : place + 14])
        behind = head[place + size : place + size + 4]
        if size and len(behind) == 4 and behind.startswith(_PACK[:3]) and behind[3] >= _PACK[3]:
            return True
        place = head.find(_PACK[:3], place + 1)
    return False


def _unit_size(unit: bytes) -> int:
    """Bytes of a pack's header (MPEG-2's or MPEG-1's) or of a packet; 0: it is neither."""
    if unit.startswith(_PACK):
        return 14 + (unit[13] & 7) if unit[4] & 0xC4 == 0x44 else 12 if unit[4] & 0xF1 == 0x21 else 0
    return 6 + int.from_bytes(unit[4:6]) if unit[3] > _PACK[3] else 0


def unread_image(head: bytes) -> str | None:
    """The name of an image format that is known, but not read here."""
    if head[4:8] == b"ftyp":
        return _STILL_BRANDS.get(head[8:12])
    return next((name for start, name in _OTHER_IMAGES.items() if head.startswith(start)), None)


def image_format(head: bytes) -> str | None:
    """Pillow's name of the image format, ``None`` if it is not one that is read here."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"BM"):
        return "BMP"
    return None
