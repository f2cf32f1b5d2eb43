"""From a file to frames of 448 x 448: runs in a worker process (``_worker.py``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from PIL import Image

from internvideo_server.errors import ServingError, invalid
from internvideo_server.limits import FRAMES_PER_GROUP
from internvideo_server.preprocessing.frame_list import MAGIC

from ._probe import check_length
from ._reader import Faults, Reader
from ._request import IMAGE_FRAMES, DecodedMedia, DecodeLimits
from ._resize import Resizers, Write, resize
from ._sampling import FrameSampling
from ._sniff import image_format, raw_stream, unread_image, video_container
from ._stills import AnimationReader, FrameListReader, is_animated, open_picture, shown

Image.MAX_IMAGE_PIXELS = None  # DecodeLimits.max_image_pixels instead
_STAND_IN_ROUNDS = 4  # each decodes again
_CONTAINERS = "MP4, MOV, MKV, WebM, AVI, FLV, MPEG-TS, M2TS, MPEG-PS, WMV, OGV, MXF, IVF, GIF, animated WebP and PNG"


Plan = Callable[[DecodedMedia], None]


def decode_video(
    path: str,
    head: bytes,
    sampling: FrameSampling,
    limits: DecodeLimits,
    threads: int,
    write: Write,
    plan: Plan = lambda decoded: None,
) -> DecodedMedia:
    """Sample a video.

    Args:
        path: The file, checked and opened by the server.
        head: Its first bytes.
        sampling: What the request says.
        limits: The server's limits.
        threads: For decoding and for resizing.
        write: Takes each frame, in any order and from several threads.
        plan: Told what will be decoded, before anything is.

    Raises:
        ServingError: INVALID_ARGUMENT; ``param`` is relative to the medium's field.
    """
    reader = open_reader(path, head, limits, threads)
    video = reader.timeline
    check_length(video.seconds, limits)
    if isinstance(reader, FrameListReader) and sampling == FrameSampling() and video.frame_count <= limits.max_frames:
        indices = _every_frame(video.frame_count)  # the sender has sampled them
    else:
        default = limits.max_frames if isinstance(reader, FrameListReader) else limits.default_frames
        indices = sampling.indices(video, default_frames=default, max_frames=limits.max_frames)
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):  # a video with fewer frames than are asked for repeats them
        places.setdefault(index, []).append(place)
    reader.check(sorted(places))
    planned = DecodedMedia(len(indices), indices, video.frame_count, video.fps, video.begins(indices))
    plan(planned)
    faults = _read(reader, places, threads, write)
    faulty = faults.damaged | faults.missing
    if faulty and (limits.strict_media or 2 * len(faulty) > len(places)):
        raise _damaged(sorted(faulty), len(places), video.frame_count)
    if faults.missing and not _stand_in(reader, places, faults.missing, threads, write):
        raise _damaged(sorted(faulty), len(places), video.frame_count)
    damaged = sum(len(places[number]) for number in faulty)
    return replace(planned, damaged_frames=damaged)


def _read(reader: Reader, places: dict[int, list[int]], threads: int, write: Write) -> Faults:
    with Resizers(threads, write) as resizers:
        return reader.read(sorted(places), lambda number, picture: resizers.submit(picture, places[number]))


def _stand_in(reader: Reader, places: dict[int, list[int]], missing: frozenset[int], threads: int, write: Write) -> bool:
    """The nearest frame that can be read takes the place of one that cannot; False: none can be read again.

    In a damaged stream a frame that came among others may not come alone: then others are tried.
    """
    found = set(places) - missing
    for _ in range(_STAND_IN_ROUNDS):
        if not found:
            break
        nearest = {number: min(found, key=lambda other: abs(other - number)) for number in missing}
        standing: dict[int, list[int]] = {}
        for number, other in nearest.items():
            standing.setdefault(other, []).extend(places[number])
        unread = _read(reader, standing, threads, write).missing
        found -= unread
        missing = frozenset(number for number, other in nearest.items() if other in unread)
        if not missing:
            return True
    return False


def decode_image(path: str, head: bytes, limits: DecodeLimits, write: Write) -> DecodedMedia:
    """Decode an image into four equal frames, upright (as its EXIF data says).

    Raises:
        ServingError: INVALID_ARGUMENT; ``param`` is relative to the medium's field.
    """
    kind = image_format(head)
    if kind is None:
        raise _not_a("image", head)
    with open_picture(path, kind, limits) as image:
        planes = resize(shown(image, kind))
    for place in range(IMAGE_FRAMES):
        write(place, planes)
    return DecodedMedia(IMAGE_FRAMES, [0] * IMAGE_FRAMES, 1, 0.0)


def open_reader(path: str, head: bytes, limits: DecodeLimits, threads: int) -> Reader:
    """The reader for a file; those of containers are imported only where they are used."""
    if head.startswith(MAGIC):
        return FrameListReader(path, limits)
    kind = image_format(head)
    if kind and is_animated(path, kind, limits):
        return AnimationReader(path, kind, limits)
    container = video_container(head)
    if container is None:
        raise _not_a("video", head)
    if limits.reader == "decord":
        from ._decord import DecordReader

        return DecordReader(path, container, limits, threads)
    from ._pyav import PyavReader

    return PyavReader(path, container, limits, threads)


def _every_frame(count: int) -> list[int]:
    """All frames, the last one repeated up to a whole group."""
    return [min(number, count - 1) for number in range(-(-count // FRAMES_PER_GROUP) * FRAMES_PER_GROUP)]


def _not_a(kind: str, head: bytes) -> ServingError:
    if name := unread_image(head):
        text = f"the file is a {name} file, which is not read: convert it to JPEG or PNG and send an image_url part"
        return invalid(text, "url")
    if kind == "video":
        if image_format(head):
            return invalid(f"the file is a {image_format(head)} image: send it as an image_url part", "url")
        if raw := raw_stream(head):
            return invalid(f"the file is {raw} stream without a container: put it into one (ffmpeg -i IN OUT.mp4)", "url")
        return invalid(f"the file is not a video of a known container ({_CONTAINERS}): convert it to one of them", "url")
    if head.startswith(MAGIC):
        return invalid("the data URL is a list of frames: send it as a video_url part", "url")
    if video_container(head):
        return invalid("the file is a video or sound, not an image: send a video as a video_url part", "url")
    return invalid("the file is not an image of a known format (JPEG, PNG, WebP, GIF, BMP): convert it to one of them", "url")


def _damaged(frames: list[int], sampled: int, total: int) -> ServingError:
    which = f"{len(frames)} of the {sampled} sampled frames (number {frames[0]} to {frames[-1]} of {total}) cannot be read"
    return invalid(f"{which}: the video is damaged or cut off; send it again, or ask for another range by start and end", "url")
