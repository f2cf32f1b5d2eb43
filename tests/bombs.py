"""Videos of a few bytes that cost a decoder a lot."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIDE = 4096


def bomb(path: Path, frames: int, repeats: int = 1) -> Path:
    """A grey VP9 video of 4096 x 4096 with one key frame, some 150 bytes a frame.

    Args:
        path: Where to write it, by its suffix.
        frames: How many packets it has.
        repeats: So many packets share a time stamp; 1: none.
    """
    options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "auto-alt-ref": "0"}
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libvpx-vp9", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 30)
        picture = av.VideoFrame.from_ndarray(np.full((SIDE * 3 // 2, SIDE), 128, np.uint8), format="yuv420p")
        packets = []
        for number in range(2):
            picture.pts, picture.time_base = number, Fraction(1, 30)
            packets += stream.encode(picture)
        packets += stream.encode()
        key, following = map(bytes, packets[:2])
        for number in range(frames):
            packet = av.Packet(following if number else key)
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.pts = packet.dts = number // repeats
            packet.is_keyframe = number == 0
            file.mux(packet)
    return path
