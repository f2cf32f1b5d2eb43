"""Whether an MP4 file is written in fragments, as live recordings are."""

from __future__ import annotations

import struct
from pathlib import Path

_HEAD = struct.Struct(">I4sQ")
_MOST_BOXES = 64  # before the first fragment


def is_fragmented(path: str) -> bool:
    """Whether a fragment is among the file's first boxes: such a file is complete wherever it ends."""
    place = 0
    with Path(path).open("rb") as file:
        for _ in range(_MOST_BOXES):
            file.seek(place)
            head = file.read(_HEAD.size).ljust(_HEAD.size, b"\0")
            size, kind, large = _HEAD.unpack(head)
            size = large if size == 1 else size
            if kind == b"moof":
                return True
            if size < 8:
                return False
            place += size
    return False
