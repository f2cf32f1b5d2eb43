"""What is asked of the decoder, and what comes back: plain data that crosses a process border."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from internvideo_server.limits import FRAMES_PER_GROUP

from ._sampling import FrameSampling

if TYPE_CHECKING:  # a decoder process needs neither pydantic nor typer
    from internvideo_server.settings import PreprocessingSettings, VideoReader

_GIGAPIXELS_A_SECOND = 1.0  # that one thread decodes
IMAGE_FRAMES = FRAMES_PER_GROUP  # a still image is a video of one group of equal frames


@dataclass(frozen=True)
class DecodeRequest:
    """One medium to decode.

    Args:
        kind: What the request says it is.
        sampling: Options of a video; an image has none.
        param: The request field that holds the medium (``messages.0.content.1.video_url``), named in errors.
    """

    kind: Literal["video", "image"] = "video"
    sampling: FrameSampling = field(default_factory=FrameSampling)
    param: str | None = None


@dataclass(frozen=True)
class DecodeLimits:
    """What the decoder takes on.

    Args:
        default_frames: Frames of a video whose request does not say how many, a multiple of 4.
        max_frames: Most frames of one video, a multiple of 4.
        max_video_pixels: Largest width x height of a video (a decoder holds a dozen such frames).
        max_image_pixels: Largest width x height of an image.
        max_duration_s: Longest video in seconds.
        reader: What reads videos; ``auto`` is ``pyav``, ``nvdec`` the same with a GPU's decoder, ``decord`` the original's (for
            comparison).
        strict_media: Whether a single damaged frame among the sampled ones is refused. If not, it is counted, and more than half
            of them damaged are refused.
        memory_bytes: Address space of one worker process; beyond, it fails instead of the whole host.
        timeout_s: Longest time for one medium, in seconds.
        max_cost: Gigapixels (packets x width x height) that one thread must decode, at most.
    """

    default_frames: int = 80
    max_frames: int = 128
    max_video_pixels: int = 4096 * 4096
    max_image_pixels: int = 100_000_000
    max_duration_s: float = 6 * 3600.0
    reader: VideoReader = "auto"
    strict_media: bool = False
    memory_bytes: int = 4 << 30
    timeout_s: float = 150.0
    max_cost: float = 150.0

    @classmethod
    def of(cls, settings: PreprocessingSettings) -> DecodeLimits:
        """What the server was started with.

        A decode has half of a request's time, for the rest waits, sees and answers; and what one thread can decode in that time
        is taken on. (1.0 gigapixels a second: measured, docs/security.md.)
        """
        timeout_s = settings.decode_timeout or settings.request_timeout / 2
        cores = min(1.0, len(os.sched_getaffinity(0)) / settings.decode_workers)  # of one decoder while all are at work
        return cls(
            default_frames=settings.num_frames,
            max_frames=settings.max_frames,
            max_video_pixels=settings.max_video_pixels,
            max_image_pixels=settings.max_image_pixels,
            max_duration_s=settings.max_video_duration,
            reader=settings.video_reader,
            strict_media=settings.strict_media,
            memory_bytes=settings.decoder_memory_mb << 20,
            timeout_s=timeout_s,
            max_cost=settings.max_decode_cost or timeout_s * cores * _GIGAPIXELS_A_SECOND,
        )


@dataclass(frozen=True)
class DecodedMedia:
    """What was decoded.

    Attributes:
        frame_count: Frames added to the buffer, T.
        indices: Frame numbers of the video, T of them; ``[0, 0, 0, 0]`` for an image.
        total_frames: Frames of the whole video.
        fps: Average frames per second of the video; 0 for an image.
        seconds: When those frames are shown, counted from the video's first, T of them; empty where that is not known.
        damaged_frames: How many of the T frames show damage.
    """

    frame_count: int
    indices: list[int]
    total_frames: int
    fps: float
    seconds: list[float] = field(default_factory=list)
    damaged_frames: int = 0
