"""A video that came as single pictures: their files one after another in one file, each behind its length."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator

MAGIC = b"internvideo frames\n"
_LENGTH = struct.Struct("<Q")


def packed(pictures: Iterable[bytes]) -> Iterator[bytes]:
    """The file, piece by piece.

    Args:
        pictures: Files of single pictures, in the order of presentation.
    """
    yield MAGIC
    for picture in pictures:
        yield _LENGTH.pack(len(picture))
        yield picture


def places(fd: int) -> list[tuple[int, int]]:
    """Where each picture begins in such a file, and its length; up to where the file is whole."""
    size, place, found = os.fstat(fd).st_size, len(MAGIC), []
    while place + _LENGTH.size <= size:
        (length,) = _LENGTH.unpack(os.pread(fd, _LENGTH.size, place))
        place += _LENGTH.size
        if place + length > size:
            break
        found.append((place, length))
        place += length
    return found
