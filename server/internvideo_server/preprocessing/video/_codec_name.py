"""What a file calls the codec of a stream that FFmpeg has no decoder for: for the answer, nothing is decoded by it."""

from __future__ import annotations

import re
from pathlib import Path

import av
import av.logging

_HEAD_BYTES = 1 << 16
_FOURCC = re.compile(r"Stream #\d+:(\d+)\D.*?Video: none \((\S+) / 0x")
_MATROSKA_ID = re.compile(rb"\x86[\x83-\xc0](V_[!-~]{1,40})")  # the element CodecID, its length, its text


def codec_name(path: str, file: av.container.InputContainer, stream: av.VideoStream) -> str:
    """The four characters or Matroska's id that the file gives; empty: it gives none.

    Args:
        path: The file.
        file: The same, opened.
        stream: Of it.
    """
    av.logging.set_level(av.logging.INFO)  # FFmpeg tells by its log alone
    try:
        described = file.dumps_format()  # type: ignore[attr-defined]  # which the stubs forget
    finally:
        av.logging.set_level(None)
    for index, fourcc in _FOURCC.findall(described):
        if int(index) == stream.index:
            return str(fourcc)
    with Path(path).open("rb") as raw:
        found = _MATROSKA_ID.search(raw.read(_HEAD_BYTES))
    return found[1].decode("ascii") if found else ""
