"""When the samples of an MP4 file are shown: the two tables of its header that FFmpeg's index does not hand on.

That index has the samples' places, sizes, key frames and times of decoding, and is there once a file is open. With these two no
packet has to be read to know all frames of hours of video.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

_BOX = struct.Struct(">I4s")
_LARGE = struct.Struct(">Q")
_MOST_BYTES = 256 << 20  # of a header
_MOST_SAMPLES = 1 << 24

Times = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def sample_times(path: str, track: int, samples: int) -> Times | None:
    """Read the tables of a track.

    Args:
        path: The file.
        track: Its id.
        samples: How many it must have.

    Returns:
        int64 [samples] twice, in the order of decoding, in the track's time base: from the time of decoding to that of
        presentation, and how long each is shown. None where they cannot be had.
    """
    try:
        with Path(path).open("rb") as file:
            header = _movie_header(file)
        for box in _boxes(header, b"trak"):
            (head,) = _boxes(box, b"tkhd")
            (number,) = struct.unpack_from(">I", head, 20 if head[0] else 12)
            if number == track:
                (table,) = _boxes(_only(_only(box, b"mdia"), b"minf"), b"stbl")
                durations = _runs(_only(table, b"stts"), samples)
                moved = list(_boxes(table, b"ctts"))
                return (_runs(moved[0], samples) if moved else np.zeros(samples, np.int64)), durations
    except (OSError, struct.error, ValueError, IndexError):  # damaged, or written in a way that is not known here
        pass
    return None


def _movie_header(file: BinaryIO) -> memoryview:
    place = 0
    while True:
        file.seek(place)
        size, kind = _BOX.unpack(file.read(_BOX.size))
        head = _BOX.size
        if size == 1:
            (size,) = _LARGE.unpack(file.read(_LARGE.size))
            head += _LARGE.size
        if kind == b"moov" and size <= _MOST_BYTES:
            return memoryview(file.read(size - head))
        if size < head:
            raise ValueError("no header")
        place += size


def _boxes(inside: memoryview, wanted: bytes) -> Iterator[memoryview]:
    place = 0
    while place + _BOX.size <= len(inside):
        size, kind = _BOX.unpack_from(inside, place)
        if size < _BOX.size:
            return
        if kind == wanted:
            yield inside[place + _BOX.size : place + size]
        place += size


def _only(inside: memoryview, wanted: bytes) -> memoryview:
    (box,) = _boxes(inside, wanted)
    return box


def _runs(table: memoryview, samples: int) -> npt.NDArray[np.int64]:
    """Of a table of (how many, what), the value of each sample. All known writers mean signed values, whatever the version."""
    (entries,) = struct.unpack_from(">I", table, 4)
    runs = np.frombuffer(table, ">i4", 2 * entries, 8).reshape(-1, 2).astype(np.int64)
    if (runs[:, 0] < 0).any() or not samples == runs[:, 0].sum() <= _MOST_SAMPLES:
        raise ValueError("another number of samples")
    return np.repeat(runs[:, 1], runs[:, 0])
