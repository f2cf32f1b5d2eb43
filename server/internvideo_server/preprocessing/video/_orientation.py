"""Which way up a frame is shown: the display matrix of its file, in all eight orientations."""

from __future__ import annotations

import struct
from typing import Any

import av
import numpy as np

from ._resize import Pixels

_ENTRIES = struct.Struct("=9i")  # [a b u; c d v; x y w]: x' = a x + c y, y' = b x + d y; y grows downwards
_MUCH = 50  # a turn that is not by quarters (by more than about a degree) is left alone, as a skew is


def upright(pixels: Pixels, frame: av.VideoFrame) -> Pixels:
    """A picture as players show it.

    Args:
        pixels: uint8 [height, width, 3].
        frame: Of which the picture was made.

    Returns:
        A view.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")  # PyAV's types know it as an object
    if matrix is None:
        return pixels
    a, b, _, c, d, *_ = _ENTRIES.unpack(bytes(matrix))
    if min(abs(a), abs(d)) > _MUCH * max(abs(b), abs(c)):
        across, down = a, d
    elif min(abs(b), abs(c)) > _MUCH * max(abs(a), abs(d)):
        pixels, across, down = pixels.transpose(1, 0, 2), c, b
    else:
        return pixels
    pixels = pixels[:, ::-1] if across < 0 else pixels
    return np.flipud(pixels) if down < 0 else pixels
