"""From a file to frames of 448 x 448: runs in a worker process (``_worker.py``)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from internvideo_server.errors import ServingError, invalid
from internvideo_server.video._probe import probe
from internvideo_server.video._reader import Reader
from internvideo_server.video._request import IMAGE_FRAMES, DecodedMedia, DecodeLimits, ReaderName
from internvideo_server.video._resize import Resizers, resize
from internvideo_server.video._sampling import Sampling
from internvideo_server.video._sniff import image_format, video_container

Frames = npt.NDArray[np.uint8]
Allocate = Callable[[int], Frames]  # T -> [T, 3, 448, 448] to write into

Image.MAX_IMAGE_PIXELS = None  # DecodeLimits.max_image_pixels instead


def decode_video(
    path: str, head: bytes, sampling: Sampling, limits: DecodeLimits, threads: int, allocate: Allocate
) -> DecodedMedia:
    """Sample a video.

    Args:
        path: The file, checked and opened by the server.
        head: Its first bytes.
        sampling: What the request says.
        limits: The server's limits.
        threads: For decoding and for resizing.
        allocate: Gives the memory for T frames.

    Raises:
        ServingError: INVALID_ARGUMENT; ``param`` is relative to the medium's field.
    """
    container = video_container(head)
    if container is None:
        raise _not_a("video", head)
    probe(path, container, limits)
    reader = _open(path, container, limits.reader, threads)
    total_frames, fps = reader.frame_count, reader.fps
    indices = sampling.indices(total_frames, fps, default_frames=limits.default_frames, max_frames=limits.max_frames)
    frames = allocate(len(indices))  # [T, 3, 448, 448]
    first_place = {index: place for place, index in reversed(list(enumerate(indices)))}
    with Resizers(threads) as resizers:
        reader.read(sorted(first_place), lambda number, picture: resizers.submit(picture, frames[first_place[number]]))
    for place, index in enumerate(indices):
        if (first := first_place[index]) != place:
            frames[place] = frames[first]
    return DecodedMedia(len(indices), indices, total_frames, fps)


def decode_image(path: str, head: bytes, limits: DecodeLimits, allocate: Allocate) -> DecodedMedia:
    """Decode an image into four equal frames, upright (as its EXIF data says).

    Raises:
        ServingError: INVALID_ARGUMENT; ``param`` is relative to the medium's field.
    """
    kind = image_format(head)
    if kind is None:
        raise _not_a("image", head)
    try:
        with Image.open(path, formats=[kind]) as image:
            if image.width * image.height > limits.max_image_pixels:
                raise invalid(
                    f"the image is {image.width}x{image.height}; at most {limits.max_image_pixels} pixels are taken", "url"
                )
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (MemoryError, ServingError):
        raise
    except Exception:  # Pillow's readers raise many types on damaged files
        raise invalid(f"the {kind} image cannot be read: it is damaged or cut off", "url") from None
    frames = allocate(IMAGE_FRAMES)  # [4, 3, 448, 448]
    resize(upright, frames[0])
    frames[1:] = frames[0]
    return DecodedMedia(IMAGE_FRAMES, [0] * IMAGE_FRAMES, 1, 0.0)


def _open(path: str, container: str, name: ReaderName, threads: int) -> Reader:
    """The reader of that name, imported only where it is used."""
    if name == "decord":
        from internvideo_server.video._decord import DecordReader

        return DecordReader(path, container, threads)
    from internvideo_server.video._pyav import PyavReader

    return PyavReader(path, container, threads)


def _not_a(kind: str, head: bytes) -> ServingError:
    if kind == "video":
        if image_format(head):
            return invalid(f"the file is a {image_format(head)} image: send it as an image_url part", "url")
        return invalid("the file is no video of a known container (MP4, MOV, MKV, WebM, AVI, FLV, MPEG-TS, GIF)", "url")
    if video_container(head):
        return invalid("the file is a video: send it as a video_url part", "url")
    return invalid("the file is no image of a known format (JPEG, PNG, WebP, GIF, BMP)", "url")
