"""Make the small test videos beside this file (committed, so tests need no encoder): ``python tests/data/make_videos.py``.

Needs PyAV with x264, x265, VP9 and AV1 encoders, as its wheels have. Each clip is a moving scene of its own: colours,
shapes and speeds follow from its number.
"""

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


def main() -> None:
    """Write all clips beside this script."""
    av.logging.set_level(av.logging.ERROR)
    for number, (name, settings) in enumerate(CLIPS.items()):
        encode(Path(__file__).parent / name, number, *settings)


if __name__ == "__main__":
    typer.run(main)
