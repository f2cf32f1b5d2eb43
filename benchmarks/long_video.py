"""Long 1080p videos for ``decode.py``, made from a short one: ``python benchmarks/long_video.py SOURCE OUT --group 250``."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import typer

FPS = 30


def make(
    source: Path,
    out: Path,
    group: Annotated[int, typer.Option(help="frames between key frames")] = 250,
    minutes: Annotated[float, typer.Option()] = 10.0,
) -> None:
    """Encode some groups of the source's frames at 1920 x 1080 in H.264 and repeat their packets to the full length."""
    groups = max(2, 500 // group)
    frames, total = group * groups, round(minutes * 60 * FPS)
    with av.open(str(source)) as file:
        pictures = [
            frame.reformat(1920, 1080, "yuv420p") for _, frame in zip(range(min(frames, 500)), file.decode(video=0), strict=False)
        ]
    with av.open(str(out), "w") as target:
        stream = target.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "x264-params": _parameters(group)})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, FPS)
        packets: list[tuple[int, int, av.Packet[Any]]] = []
        for i in range(frames):
            picture = pictures[i % len(pictures)]
            picture.pts, picture.time_base = i, stream.time_base
            packets += [(p.pts or 0, p.dts or 0, p) for p in stream.encode(picture)]
        packets += [(p.pts or 0, p.dts or 0, p) for p in stream.encode()]
        for round_ in range(total // frames):
            for pts, dts, packet in packets:
                packet.time_base = Fraction(1, FPS)  # muxing rescaled it
                packet.pts, packet.dts, packet.stream = pts + round_ * frames, dts + round_ * frames, stream
                target.mux(packet)


def _parameters(group: int) -> str:
    return f"keyint={group}:min-keyint={group}:scenecut=0:bframes=3"


if __name__ == "__main__":
    typer.run(make)
