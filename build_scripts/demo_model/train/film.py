"""Scenes to real video files: another renderer than training's (polygons by Pillow), and real codecs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from build_scripts.demo_model.train.scene import COLOURS, Scene, Thing

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Format:
    """How a video is stored."""

    codec: str  # PyAV's name of the encoder
    suffix: str
    width: int
    height: int
    fps: int
    seconds: float
    crf: int

    @property
    def frames(self) -> int:
        """How many there are."""
        return round(self.fps * self.seconds)

    @property
    def orientation(self) -> str:
        """Landscape, square or portrait."""
        return "square" if self.width == self.height else "landscape" if self.width > self.height else "portrait"


_CODECS = (("libx264", ".mp4", (20, 32)), ("libvpx-vp9", ".webm", (25, 42)), ("libx265", ".mp4", (22, 32)))
_SIZES = ((640, 360), (480, 270), (480, 360), (360, 360), (448, 448), (270, 480), (360, 640), (854, 480))


def sample_format(random: np.random.Generator) -> Format:
    """Any codec, size, frame rate and length: wider than what training imitates."""
    codec, suffix, quality = _CODECS[random.choice(3, p=[0.6, 0.25, 0.15])]
    width, height = _SIZES[random.integers(len(_SIZES))]
    fps = int(random.choice((8, 12, 15, 24, 25, 30)))
    return Format(codec, suffix, width, height, fps, random.uniform(2.5, 6), int(random.integers(*quality)))


def film(scene: Scene, video_format: Format, path: Path) -> None:
    """Draw a scene and encode it."""
    back = _background(scene, video_format)
    times = np.arange(video_format.frames) / (video_format.frames - 1)
    with av.open(str(path), "w") as container:
        options = {"crf": str(video_format.crf)}
        if video_format.codec == "libx265":
            options["x265-params"] = "log-level=none"
        if video_format.codec == "libvpx-vp9":
            options |= {"deadline": "realtime", "cpu-used": "6"}
        stream = cast(av.VideoStream, container.add_stream(video_format.codec, rate=video_format.fps, options=options))
        stream.width, stream.height, stream.pix_fmt = video_format.width, video_format.height, "yuv420p"
        stream.time_base = Fraction(1, video_format.fps)
        for time in times:
            picture = back(float(time))
            _draw_things(picture, scene, np.array([time]))
            frame = av.VideoFrame.from_image(picture)  # type: ignore[no-untyped-call]
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())


def _draw_things(picture: Image.Image, scene: Scene, time: NDArray[np.float64]) -> None:
    pencil = ImageDraw.Draw(picture)
    width, height = picture.size
    for thing in scene.things:
        if not thing.visible(time)[0]:
            continue
        x, y = thing.centres(time)[0] * (width, height)
        radius = float(thing.sizes(time)[0]) * math.sqrt(width * height)
        colour = COLOURS[thing.to_colour if thing.to_colour and thing.happened(time)[0] else thing.colour]
        if thing.shape == "circle":
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        else:
            points = _outline(thing) @ _turn(thing.angle) * radius + (x, y)
            pencil.polygon([(float(px), float(py)) for px, py in points], fill=colour)


def _outline(thing: Thing) -> NDArray[np.float64]:
    """Corners [P, 2] in radii, y downwards."""
    if thing.shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.87
    if thing.shape == "triangle":
        return np.array([(0, -1.15), (1, 0.65), (-1, 0.65)])
    if thing.shape == "cross":
        a, b = 0.34, 1.05
        points = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        return np.array(points)
    angles = np.arange(10) * math.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.2, 0.54)
    return np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], axis=1)


def _turn(angle: float) -> NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([(cos, -sin), (sin, cos)])


class _Background:
    """A still or slowly moving picture behind the shapes."""

    def __init__(self, picture: Image.Image, size: tuple[int, int], drift: tuple[float, float]) -> None:
        self.picture, self.size, self.drift = picture, size, drift

    def __call__(self, time: float) -> Image.Image:
        """The part of it that is seen at this time, 0..1; a new picture."""
        room = self.picture.width - self.size[0], self.picture.height - self.size[1]
        left, top = (round(r * (0.5 + d * (time - 0.5))) for r, d in zip(room, self.drift, strict=True))
        return self.picture.crop((left, top, left + self.size[0], top + self.size[1]))


def _background(scene: Scene, video_format: Format) -> _Background:
    random = np.random.default_rng(scene.backdrop)
    size = video_format.width, video_format.height
    if not scene.things:
        big = round(size[0] * 1.4), round(size[1] * 1.4)
        return _Background(_nature(big, random), size, tuple(random.uniform(-1, 1, 2)))
    tries = random.uniform(10, 245, (60, 3))
    distance = np.abs(tries[:, None] - [COLOURS[name] for name in sorted(scene.colours)]).sum(2).min(1)
    good = np.flatnonzero(distance > 200)
    base = tries[good[0] if len(good) else distance.argmax()]
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.broadcast_to(base, (size[1], size[0], 3)).copy()
    kind = random.choice(["plain", "gradient", "noise", "checked"], p=[0.35, 0.3, 0.25, 0.1])
    if kind == "gradient":
        pixels += (x / size[0] - 0.5)[..., None] * random.uniform(-50, 50, 3) + (y / size[1] - 0.5)[..., None] * 30
    elif kind == "noise":
        pixels += _noise(size, random, power=random.uniform(0.8, 1.6))[..., None] * random.uniform(3, 18)
    elif kind == "checked":
        cell = int(random.integers(12, 60))
        pixels += (((x // cell + y // cell) % 2) * 2 - 1)[..., None] * random.uniform(2, 8)
    return _Background(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), size, (0, 0))


def _nature(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """No shapes: coloured 1/f noise with a few soft regions of another texture, as a landscape has them."""
    layers = [_coloured_noise(size, random) for _ in range(int(random.integers(1, 4)))]
    picture = Image.fromarray(layers[0])
    for layer in layers[1:]:
        field = _noise(size, random, power=2.2)
        mask = Image.fromarray(((field > random.uniform(0, 1)) * 255).astype(np.uint8))
        picture.paste(Image.fromarray(layer), mask=mask.filter(ImageFilter.GaussianBlur(random.uniform(1, 6))))
    return picture


def _coloured_noise(size: tuple[int, int], random: np.random.Generator) -> Pixels:
    base, tint = random.uniform(40, 200, 3), random.uniform(15, 45)
    power = random.uniform(0.9, 1.8)
    shared = _noise(size, random, power)
    own = np.stack([_noise(size, random, power) for _ in range(3)], axis=2)
    return (base + tint * (shared[..., None] + 0.4 * own)).clip(0, 255).astype(np.uint8)


def _noise(size: tuple[int, int], random: np.random.Generator, power: float) -> NDArray[np.float64]:
    """1/f**power noise of mean 0 and deviation 1: [height, width]."""
    shape = size[1], size[0]
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    frequency[0, 0] = 1
    noise = np.fft.irfft2(np.fft.rfft2(random.standard_normal(shape)) / frequency**power, shape)
    scaled: NDArray[np.float64] = (noise - noise.mean()) / noise.std()
    return scaled
