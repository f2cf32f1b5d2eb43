"""From a file to frames of 448 x 448: runs in a worker process (``_worker.py``).

The resize is Pillow's own, of a version below 13 (``pyproject.toml``), since the model's merging reacts to single levels: see
the project's ``docs/architecture.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from decord import DECORDError, VideoReader
from PIL import Image, ImageOps

from internvideo_server.errors import ServingError, invalid
from internvideo_server.video._probe import probe
from internvideo_server.video._request import FRAME_SIZE, IMAGE_FRAMES, DecodedMedia, DecodeLimits
from internvideo_server.video._sampling import Sampling
from internvideo_server.video._sniff import image_format, video_container

Frames = npt.NDArray[np.uint8]
Allocate = Callable[[int], Frames]  # T -> [T, 3, 448, 448] to write into

Image.MAX_IMAGE_PIXELS = None  # DecodeLimits.max_image_pixels instead

# Full-size frames read at once: few enough to resize one batch while the next is decoded, and 128 frames in 4K take 3.4 GB.
_BATCH_FRAMES = 16
_BATCH_BYTES = 64 << 20


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
    width, height = probe(path, container, limits)
    try:
        reader = VideoReader(path, num_threads=threads)
        total_frames, fps = len(reader), float(reader.get_avg_fps())
    except (DECORDError, RuntimeError, AssertionError):  # decord asserts its frame count
        raise invalid("the video cannot be opened: it is damaged, cut off, or of a codec that is not read", "url") from None
    indices = sampling.indices(total_frames, fps, default_frames=limits.default_frames, max_frames=limits.max_frames)
    frames = allocate(len(indices))  # [T, 3, 448, 448]
    step = max(1, min(_BATCH_FRAMES, _BATCH_BYTES // (3 * width * height)))
    digests: list[bytes] = []
    with ThreadPoolExecutor(threads) as pool:
        resizing: list[Future[bytes]] = []
        for first in range(0, len(indices), step):
            batch = _read(reader, indices[first : first + step], total_frames)  # [n, height, width, 3]
            digests += [done.result() for done in resizing]  # one batch is resized while the next one is decoded
            resizing = [pool.submit(_resize, frame, frames[first + i]) for i, frame in enumerate(batch)]
        digests += [done.result() for done in resizing]
    return DecodedMedia(len(indices), indices, total_frames, fps, _hash(digests))


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
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))  # [height, width, 3]
    except (MemoryError, ServingError):
        raise
    except Exception:  # Pillow's readers raise many types on damaged files
        raise invalid(f"the {kind} image cannot be read: it is damaged or cut off", "url") from None
    frames = allocate(IMAGE_FRAMES)  # [4, 3, 448, 448]
    digest = _resize(pixels, frames[0])
    frames[1:] = frames[0]
    return DecodedMedia(IMAGE_FRAMES, [0] * IMAGE_FRAMES, 1, 0.0, _hash([digest] * IMAGE_FRAMES))


def _read(reader: VideoReader, indices: list[int], total_frames: int) -> Frames:
    """Read full-size RGB frames [n, height, width, 3]."""
    try:
        batch: Frames = reader.get_batch(indices).asnumpy()
    except (DECORDError, RuntimeError):
        raise invalid(
            f"the frames {indices[0]} to {indices[-1]} of {total_frames} cannot all be read: the video is damaged or cut off",
            "url",
        ) from None
    return batch


def _resize(frame: Frames, out: Frames) -> bytes:
    """Resize one frame [height, width, 3] into ``out`` [3, 448, 448]; returns the SHA-256 of the result."""
    resized = Image.fromarray(frame).resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BICUBIC)
    np.copyto(out, np.asarray(resized).transpose(2, 0, 1))
    return hashlib.sha256(out.data).digest()


def _hash(digests: list[bytes]) -> int:
    return int.from_bytes(hashlib.sha256(b"".join(digests)).digest()[:8], "little") or 1


def _not_a(kind: str, head: bytes) -> ServingError:
    if kind == "video":
        if image_format(head):
            return invalid(f"the file is a {image_format(head)} image: send it as an image_url part", "url")
        return invalid("the file is no video of a known container (MP4, MOV, MKV, WebM, AVI, FLV)", "url")
    if video_container(head):
        return invalid("the file is a video: send it as a video_url part", "url")
    return invalid("the file is no image of a known format (JPEG, PNG, WebP, GIF, BMP)", "url")
