"""Make the small test videos beside this file (committed, so tests need no encoder): ``python tests/data/make_videos.py``.

Needs PyAV with x264, x265, VP9 and AV1 encoders, as its wheels have. Each clip is a moving scene of its own: colours,
shapes and speeds follow from its number.
"""

import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import typer

FPS = 15
CLIPS = {
    **{f"v{i}.mp4": ("libx264", 640, 360, 45 + 10 * i) for i in range(8)},
    "portrait.mp4": ("libx264", 270, 480, 60),
    "vp9.webm": ("libvpx-vp9", 320, 180, 45),
    "hevc.mp4": ("libx265", 320, 180, 45),
    "av1.mp4": ("libsvtav1", 320, 180, 15),  # decord cannot read it: for the error message
    "huge.mp4": ("libx264", 4352, 4096, 2),  # more pixels than the default limit
}


@dataclass(frozen=True)
class Kind:
    """How a clip of 160 x 96 is encoded: what readers of video files get wrong."""

    codec: str
    options: dict[str, str]
    frames: int = 50
    pixels: str = "yuv420p"
    container: dict[str, str] = field(default_factory=dict)
    uneven: bool = False  # frames last 1 to 5 ticks


OPEN_GOP = "keyint=12:min-keyint=12:open-gop=1:bframes=3:scenecut=0"
CLOSED_GOP = "keyint=12:min-keyint=12:bframes=3:scenecut=0"
KINDS = {
    "closed_gop.mp4": Kind("libx264", {"crf": "30", "x264-params": CLOSED_GOP}),
    "open_gop.mp4": Kind("libx264", {"crf": "30", "x264-params": OPEN_GOP}),
    "open_gop.mkv": Kind("libx264", {"crf": "30", "x264-params": OPEN_GOP}),
    "gradual_refresh.mp4": Kind("libx264", {"crf": "30", "x264-params": "keyint=12:intra-refresh=1:bframes=0"}),
    "hevc_open_gop.mp4": Kind("libx265", {"crf": "30", "x265-params": "log-level=none:bframes=4:" + OPEN_GOP}),
    "hevc_10_bit.mp4": Kind("libx265", {"crf": "30", "x265-params": "log-level=none:keyint=15"}, pixels="yuv420p10le"),
    "uneven.mp4": Kind("libx264", {"crf": "30", "x264-params": "keyint=20"}, uneven=True),
    "uneven.mkv": Kind("libx264", {"crf": "30", "x264-params": "keyint=20"}, uneven=True),
    "fragments.mp4": Kind("libx264", {"x264-params": "keyint=20"}, container={"movflags": "frag_keyframe+empty_moov"}),
    "full_chroma.mp4": Kind("libx264", {"crf": "30", "x264-params": "keyint=20"}, pixels="yuv444p"),
    "stream.ts": Kind("libx264", {"crf": "30", "x264-params": "keyint=20"}),
    "flash.flv": Kind("libx264", {"crf": "30", "x264-params": "keyint=20"}),
    "mpeg4.avi": Kind("mpeg4", {"bf": "2", "b": "200k"}),
    "mpeg2.mkv": Kind("mpeg2video", {"g": "12", "bf": "2", "b": "200k"}),
    "mjpeg.avi": Kind("mjpeg", {"b": "200k"}, 12, "yuvj420p"),
    "vp8.webm": Kind("libvpx", {"g": "20", "b": "100k"}),
    "vp9_groups.webm": Kind("libvpx-vp9", {"g": "20", "b": "100k"}),
    "av1_groups.mp4": Kind("libsvtav1", {"g": "20", "crf": "45"}),
    "moving.gif": Kind("gif", {}, 12, "rgb8"),
}


def scene(number: int, time: float, width: int, height: int) -> np.ndarray:
    """One frame, uint8 [height, width, 3]: a gradient, and three discs on paths of their own."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / width, y / height
    random = np.random.default_rng(number)
    top, bottom = random.uniform(0, 255, 3), random.uniform(0, 255, 3)
    frame = top + (bottom - top) * (y * 0.7 + x * 0.3)[..., None]
    for _ in range(3):
        colour, phase = random.uniform(0, 255, 3), random.uniform(0, 6.28, 2)
        speed, radius = random.uniform(0.5, 2.0, 2), random.uniform(0.08, 0.2)
        centre_x, centre_y = 0.5 + 0.4 * np.sin(speed * time + phase)
        inside = (x - centre_x) ** 2 + ((y - centre_y) * height / width) ** 2 < radius**2
        frame[inside] = colour
    return frame.astype(np.uint8)


def encode(path: Path, number: int, codec: str, width: int, height: int, frames: int) -> None:
    """Write one clip."""
    quality = {"libx264": {"crf": "32"}, "libx265": {"crf": "32", "x265-params": "log-level=none"}}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=quality.get(codec, {"crf": "45"}))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for i in range(frames):
            picture = av.VideoFrame.from_ndarray(scene(number, i / FPS, width, height), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def encode_kind(path: Path, kind: Kind) -> None:
    """Write one clip of scene 3."""
    ticks, moment = Fraction(1, 4 * FPS if kind.uneven else FPS), 0
    with av.open(str(path), "w", options=kind.container) as container:
        stream = container.add_stream(kind.codec, rate=FPS, options=kind.options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, kind.pixels
        stream.time_base = stream.codec_context.time_base = ticks
        for i in range(kind.frames):
            picture = av.VideoFrame.from_ndarray(scene(3, i / FPS, 160, 96), format="rgb24").reformat(format=kind.pixels)
            picture.pts, picture.time_base = moment, ticks
            container.mux(stream.encode(picture))
            moment += 1 + i * i % 5 if kind.uneven else 1
        container.mux(stream.encode())


def cut_by_edit_list(source: Path, path: Path, frames: int) -> None:
    """A copy whose first frames are in the file, but not shown."""
    with av.open(str(source)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                before = int(Fraction(frames, FPS) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - before, packet.dts - before, stream
                new.mux(packet)


def turn(source: Path, path: Path) -> None:
    """A copy that is to be shown turned by 90 degrees, as from a telephone: another matrix in its track header."""
    content, one = bytearray(source.read_bytes()), 1 << 16
    start = content.index(b"tkhd") + 4 + 40
    content[start : start + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 96 * one, 0, 1 << 30)
    path.write_bytes(content)


def main() -> None:
    """Write all clips beside this script."""
    av.logging.set_level(av.logging.ERROR)
    here = Path(__file__).parent
    for name, kind in KINDS.items():
        encode_kind(here / name, kind)
    cut_by_edit_list(here / "closed_gop.mp4", here / "edit_list.mp4", 7)
    turn(here / "closed_gop.mp4", here / "turned.mp4")
    for number, (name, settings) in enumerate(CLIPS.items()):
        encode(here / name, number, *settings)


if __name__ == "__main__":
    typer.run(main)
