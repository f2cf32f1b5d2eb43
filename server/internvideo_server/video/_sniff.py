"""What kind of file the first bytes say it is.

FFmpeg guesses formats from content and follows the references of some (playlists, ``concat`` scripts, SDP): a text file called
``.mp4`` could make it open other files and hosts. So nothing reaches FFmpeg unless its first bytes are those of a container on
this list, for which FFmpeg's own guess is then certain as well.
"""

from __future__ import annotations

HEAD_BYTES = 4096  # enough for every signature below

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_STILL_BRANDS = (b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1")  # pictures in the container of MP4
_TS_PACKET, _TS_SYNC = 188, 0x47


def video_container(head: bytes) -> str | None:
    """FFmpeg's name of the container format, ``None`` if it is none that is read here.

    Args:
        head: The first ``HEAD_BYTES`` bytes of the file.
    """
    if head[4:8] in _ISO_BOXES:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3") and (b"matroska" in head[:128] or b"webm" in head[:128]):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"FLV\x01"):
        return "flv"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if len(head) > 4 * _TS_PACKET and set(head[::_TS_PACKET]) == {_TS_SYNC}:
        return "mpegts"
    return None


def is_still(head: bytes) -> bool:
    """Whether it is an AVIF or HEIC picture: not read here as an image, though it looks like a video's container."""
    return head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS


def image_format(head: bytes) -> str | None:
    """Pillow's name of the image format, ``None`` if it is none that is read here."""
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
