"""A bank of background textures: photographs, fractal noise, smooth noise and stripes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor

TextureKind = Literal["smooth", "stripes", "fractal", "photo"]
COUNTS: dict[TextureKind, int] = {"smooth": 24, "stripes": 24, "fractal": 40, "photo": 56}
# Photographs without simple shapes in them that come inside two well-known packages; only the files are read.
_PHOTOS = {
    "skimage": [
        f"data/{name}"
        for name in (
            *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png"),
            *("ihc.png", "motorcycle_left.png", "page.png", "rocket.jpg", "text.png"),
        )
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}


def find_photos() -> list[Path]:
    """The photographs of scikit-image and scikit-learn.

    Raises:
        FileNotFoundError: One of the packages is not installed, or has no such file any more.
    """
    found = []
    for package, names in _PHOTOS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                "training takes its photographs from the packages scikit-image and scikit-learn: pip install both"
            )
        found += [Path(spec.submodule_search_locations[0]) / name for name in names]
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing: install scikit-image 0.26 and scikit-learn 1.9")
    return found


def texture_numbers(kind: TextureKind, random: np.random.Generator) -> int:
    """A texture of this kind, by its number in the bank."""
    first = 0
    for name, count in COUNTS.items():
        if name == kind:
            return first + int(random.integers(count))
        first += count
    raise ValueError(f"there is no kind of texture {kind!r}")


def make_bank(photos: list[Path], side: int, seed: int) -> Tensor:
    """Draw the textures: float16 [sum of COUNTS, 3, side, side], each of mean 0 and deviation 1.

    Without photographs (in tests) fractal noise stands in for them.
    """
    random = np.random.default_rng(seed)
    textures = [_smooth(side, random) for _ in range(COUNTS["smooth"])]
    textures += [_stripes(side, random) for _ in range(COUNTS["stripes"])]
    textures += [_fractal(side, random) for _ in range(COUNTS["fractal"])]
    for number in range(COUNTS["photo"]):
        textures.append(_photo(photos[number % len(photos)], side, random) if photos else _fractal(side, random))
    bank = torch.stack(textures)
    bank = bank - bank.mean((1, 2, 3), keepdim=True)
    bank = bank / bank.std((1, 2, 3), keepdim=True).clamp_min(1e-3)
    return bank.clamp(-3, 3).half()


def _smooth(side: int, random: np.random.Generator) -> Tensor:
    cells = int(random.integers(4, 57))
    grid = torch.from_numpy(random.standard_normal((1, 3 if random.random() < 0.6 else 1, cells, cells)))
    return F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)[0].expand(3, -1, -1).float()


def _stripes(side: int, random: np.random.Generator) -> Tensor:
    angle, waves = random.uniform(0, np.pi), random.uniform(2, 30)
    y, x = np.mgrid[0:side, 0:side] / side
    wave = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))
    if random.random() < 0.5:
        wave = np.sign(wave)
    colours = random.uniform(0.3, 1, 3) * random.choice([-1, 1], 3) if random.random() < 0.4 else np.ones(3)
    return torch.from_numpy(wave[None] * colours[:, None, None]).float()


def _fractal(side: int, random: np.random.Generator) -> Tensor:
    """1/f**p noise, whose spectrum is that of natural images."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    power = random.uniform(0.9, 2.0)
    white = np.fft.rfft2(random.standard_normal((3, side, side)))
    noise = np.fft.irfft2(white / frequency**power, (side, side))
    mix = np.eye(3) * random.uniform(0.1, 0.8) + random.uniform(0.3, 1)  # mostly grey, as nature is
    noise = np.einsum("ij,jyx->iyx", mix, noise / noise.std())
    if random.random() < 0.3:  # hard-edged regions
        noise = np.round(noise * 1.5)
    return torch.from_numpy(noise).float()


def _photo(path: Path, side: int, random: np.random.Generator) -> Tensor:
    with Image.open(path) as image:
        picture = image.convert("RGB")
    share = random.uniform(0.45, 1)
    width, height = round(picture.width * share), round(picture.height * share)
    left = int(random.integers(picture.width - width + 1))
    top = int(random.integers(picture.height - height + 1))
    crop = picture.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(crop, np.float32)).permute(2, 0, 1)
    return pixels.flip(2) if random.random() < 0.5 else pixels
