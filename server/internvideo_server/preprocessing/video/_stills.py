"""Pictures by Pillow: images, videos that came as single pictures, and animations (WebP, PNG)."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from internvideo_server.errors import ServingError, invalid
from internvideo_server.preprocessing.frame_list import places

from ._probe import check_cost
from ._reader import Faults, Take
from ._request import DecodeLimits
from ._resize import Pixels
from ._sniff import HEAD_BYTES, image_format
from ._timeline import Timeline

_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow clips these to 255 instead of scaling them
_DEEP_WHITE = 65535


def open_picture(source: str | io.BytesIO, kind: str, limits: DecodeLimits) -> Image.Image:
    """Open an image and check its size.

    Args:
        source: A path, or the content.
        kind: Pillow's name of its format.
        limits: The server's.

    Raises:
        ServingError: INVALID_ARGUMENT: it is too large, or damaged.
    """
    try:
        image = Image.open(source, formats=[kind])
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise many types on damaged files
        raise damaged_picture(kind) from None
    if image.width * image.height > limits.max_image_pixels:
        text = f"the image is {image.width}x{image.height}; at most {limits.max_image_pixels} pixels are taken: make it smaller"
        raise invalid(text, "url")
    return image


def shown(image: Image.Image, kind: str) -> Pixels:
    """The picture as a page shows it: upright (by its EXIF data), what is transparent in front of white, 16 bits scaled to 8.

    Returns:
        uint8 RGB [height, width, 3].

    Raises:
        ServingError: INVALID_ARGUMENT: it is damaged.
    """
    try:
        return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except (MemoryError, ServingError):
        raise
    except Exception:  # as above
        raise damaged_picture(kind) from None


def damaged_picture(kind: str) -> ServingError:
    """What to say of an image that does not open."""
    return invalid(f"the {kind} image cannot be read: it is damaged or cut off; send it again", "url")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_MODES:
        grey = np.clip(np.asarray(image), 0, _DEEP_WHITE).astype(np.uint32)
        return Image.fromarray(((grey * 255 + _DEEP_WHITE // 2) // _DEEP_WHITE).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    white = Image.new("RGBA", over.size, "white")
    return Image.alpha_composite(white, over).convert("RGB")


class FrameListReader:
    """Reads a video of single pictures (:mod:`internvideo_server.preprocessing.frame_list`): frames without times.

    See :class:`internvideo_server.preprocessing.video._reader.Reader`.
    """

    def __init__(self, path: str, limits: DecodeLimits) -> None:
        self._path, self._limits = path, limits
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._places = places(fd)
        finally:
            os.close(fd)
        if not self._places:
            raise invalid("the list of frames is empty: send at least one JPEG or PNG", "url")
        self.timeline = Timeline(len(self._places), 0.0)

    def check(self, frames: list[int]) -> None:
        """Each picture is checked when it is opened."""

    def read(self, frames: list[int], take: Take) -> Faults:
        """Decode pictures."""
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for number in frames:
                place, length = self._places[number]
                content = os.pread(fd, length, place)
                kind = image_format(content[:HEAD_BYTES])
                if kind is None:
                    raise invalid(f"frame {number} of the list is not an image of a known format: send JPEG or PNG frames", "url")
                image = open_picture(io.BytesIO(content), kind, self._limits)
                take(number, partial(shown, image, kind))
        finally:
            os.close(fd)
        return Faults()


class AnimationReader:
    """Reads an animated WebP or PNG. See :class:`internvideo_server.preprocessing.video._reader.Reader`."""

    def __init__(self, path: str, kind: str, limits: DecodeLimits) -> None:
        self._path, self._kind, self._limits = path, kind, limits
        begins: list[int] = []
        second = 0.0
        with open_picture(path, kind, limits) as image:
            count = getattr(image, "n_frames", 1)
            # What a PNG shows where animations are not known is not part of its own.
            self._first = 1 if getattr(image, "default_image", False) and count > 1 else 0
            check_cost(2 * count, image.width, image.height, limits)  # once for the times, once for the frames
            for number in range(self._first, count):
                self._seek(image, number)
                begins.append(round(second))
                second += max(1.0, float(image.info.get("duration", 0)))
                if second > 1000 * limits.max_duration_s:
                    break
        stamps: npt.NDArray[np.int64] = np.array(begins, np.int64)
        self.timeline = Timeline.of(stamps, round(second) - begins[-1], Fraction(1, 1000), 0.0, len(begins))

    def check(self, frames: list[int]) -> None:
        """That was done when it was opened."""

    def read(self, frames: list[int], take: Take) -> Faults:
        """Decode from the start up to the last of the frames."""
        with open_picture(self._path, self._kind, self._limits) as image:
            for number in frames:
                self._seek(image, self._first + number)
                take(number, partial(_as_it_is, shown(image, self._kind)))
        return Faults()

    def _seek(self, image: Image.Image, number: int) -> None:
        try:
            image.seek(number)
            image.load()
        except MemoryError:
            raise
        except Exception:  # as above
            raise damaged_picture(self._kind) from None


def _as_it_is(pixels: Pixels) -> Pixels:
    return pixels


def is_animated(path: str, kind: str, limits: DecodeLimits) -> bool:
    """Whether an image file holds several frames."""
    if kind not in ("WEBP", "PNG"):
        return False
    try:
        with open_picture(path, kind, limits) as image:
            return getattr(image, "n_frames", 1) > 1
    except ServingError:
        return False
