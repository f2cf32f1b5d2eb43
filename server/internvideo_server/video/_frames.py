"""From a file to frames of 448 x 448: runs in a worker process (``_worker.py``)."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from internvideo_server.errors import ServingError, invalid
from internvideo_server.video._reader import Reader
from internvideo_server.video._request import IMAGE_FRAMES, DecodedMedia, DecodeLimits
from internvideo_server.video._resize import Resizers, Write, resize
from internvideo_server.video._sampling import Sampling
from internvideo_server.video._sniff import image_format, is_still, video_container

Image.MAX_IMAGE_PIXELS = None  # DecodeLimits.max_image_pixels instead


def decode_video(path: str, head: bytes, sampling: Sampling, limits: DecodeLimits, threads: int, write: Write) -> DecodedMedia:
    """Sample a video.

    Args:
        path: The file, checked and opened by the server.
        head: Its first bytes.
        sampling: What the request says.
        limits: The server's limits.
        threads: For decoding and for resizing.
        write: Takes each frame, in any order and from several threads.

    Raises:
        ServingError: INVALID_ARGUMENT; ``param`` is relative to the medium's field.
    """
    container = video_container(head)
    if container is None:
        raise _not_a("video", head)
    reader = _open(path, container, limits, threads)
    indices = sampling.indices(reader.frame_count, reader.fps, default_frames=limits.default_frames, max_frames=limits.max_frames)
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):  # a video with fewer frames than are asked for repeats them
        places.setdefault(index, []).append(place)
    with Resizers(threads, write) as resizers:
        reader.read(sorted(places), lambda number, picture: resizers.submit(picture, places[number]))
    return DecodedMedia(len(indices), indices, reader.frame_count, reader.fps)


def decode_image(path: str, head: bytes, limits: DecodeLimits, write: Write) -> DecodedMedia:
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
    planes = resize(np.asarray(upright))
    for place in range(IMAGE_FRAMES):
        write(place, planes)
    return DecodedMedia(IMAGE_FRAMES, [0] * IMAGE_FRAMES, 1, 0.0)


def _open(path: str, container: str, limits: DecodeLimits, threads: int) -> Reader:
    """The reader that the server is set to, imported only where it is used."""
    if limits.reader == "decord":
        from internvideo_server.video._decord import DecordReader

        return DecordReader(path, container, limits, threads)
    from internvideo_server.video._pyav import PyavReader

    return PyavReader(path, container, limits, threads)


def _not_a(kind: str, head: bytes) -> ServingError:
    if kind == "video":
        if image_format(head):
            return invalid(f"the file is a {image_format(head)} image: send it as an image_url part", "url")
        return invalid("the file is no video of a known container (MP4, MOV, MKV, WebM, AVI, FLV, MPEG-TS, GIF)", "url")
    if video_container(head) and not is_still(head):
        return invalid("the file is a video: send it as a video_url part", "url")
    return invalid("the file is no image of a known format (JPEG, PNG, WebP, GIF, BMP)", "url")
