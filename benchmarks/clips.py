"""Many videos of one, as far as caches can tell: for load without hits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import av
from PIL import Image, ImageDraw

from internvideo_server.preprocessing.video import sample_indices

MOST_CUT = 0.4  # of the video's frames: with more clips than frames to cut, some are equal
SIDE, STAMP = 448, 8  # pixels of a frame and of a bit of its stamp


def make_clips(video: Path, folder: Path, number: int, frames: int = 0) -> list[Path]:
    """Numbered clips of the video, each a packet shorter than the last; nothing is encoded again, and what is there is kept.

    Args:
        video: Any that MP4 can hold.
        folder: Made where it is missing.
        number: How many.
        frames: That each clip has at least: the video is repeated for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with av.open(str(video)) as source:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.dts is not None]
        first = packets[0].dts or 0
        span = (packets[-1].dts or 0) - first + (packets[-1].duration or 1)
        wanted = max(len(packets), int(frames / (1 - MOST_CUT)) + 1 if frames else 0)
        clips = [folder / f"{i}.mp4" for i in range(number)]
        for i, clip in enumerate(clips):
            if clip.exists():
                continue
            part = clip.with_name(f"part-{clip.name}")
            with av.open(str(part), "w") as target:
                out = target.add_stream_from_template(stream)
                for place, packet in zip(range(wanted - i % max(1, int(MOST_CUT * wanted))), _around(packets), strict=False):
                    copy = av.Packet(bytes(packet))
                    shift = place // len(packets) * span
                    copy.pts, copy.dts, copy.duration = (packet.pts or 0) + shift, (packet.dts or 0) + shift, packet.duration
                    copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, out
                    target.mux(copy)
            part.rename(clip)
    return clips


def _around(packets: list[av.Packet[Any]]) -> Iterator[av.Packet[Any]]:
    for place in count():
        yield packets[place % len(packets)]


def make_pictures(video: Path, folder: Path, number: int, frames: int) -> list[list[Path]]:
    """As many rows of pictures, each the video's sampled frames with the row's number stamped on: no two are equal."""
    with av.open(str(video)) as source:
        pixels = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
        rate = float(source.streams.video[0].average_rate or 30)
    wanted = [pixels[i] for i in sample_indices(len(pixels), rate, frames)]
    chosen = [Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for each in wanted]
    rows = [[folder / f"{row}" / f"{place}.jpg" for place in range(frames)] for row in range(number)]

    def save(row: int) -> None:
        rows[row][0].parent.mkdir(parents=True)
        for path, picture in zip(rows[row], chosen, strict=True):
            stamped = picture.copy()
            draw = ImageDraw.Draw(stamped)
            for bit in range(16):
                box = (bit * STAMP, 0, (bit + 1) * STAMP - 1, STAMP - 1)
                draw.rectangle(box, fill="white" if row >> bit & 1 else "black")
            stamped.save(path, quality=90)

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, range(number)))
    return rows
