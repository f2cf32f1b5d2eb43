"""What is asked of the decoder, and what comes back: plain data that crosses a process border."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from internvideo_server.limits import FRAMES_PER_GROUP
from internvideo_server.video._sampling import Sampling

FRAME_SIZE = 448  # pixels, both sides: the vision tower's input
FRAME_BYTES = 3 * FRAME_SIZE * FRAME_SIZE
IMAGE_FRAMES = FRAMES_PER_GROUP  # a still image is a video of one group of equal frames

ReaderName = Literal["auto", "pyav", "nvdec", "decord"]


@dataclass(frozen=True)
class DecodeRequest:
    """One medium to decode.

    Args:
        kind: What the request says it is.
        sampling: Options of a video; an image has none.
        param: The request field that holds the medium (``messages.0.content.1.video_url``), named in errors.
    """

    kind: Literal["video", "image"] = "video"
    sampling: Sampling = field(default_factory=Sampling)
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
        memory_bytes: Address space of one worker process; beyond, it fails instead of the whole host.
    """

    default_frames: int = 80
    max_frames: int = 128
    max_video_pixels: int = 4096 * 4096
    max_image_pixels: int = 100_000_000
    max_duration_s: float = 6 * 3600.0
    reader: ReaderName = "auto"
    memory_bytes: int = 4 << 30


@dataclass(frozen=True)
class DecodedMedia:
    """What was decoded.

    Attributes:
        frame_count: Frames added to the buffer, T.
        indices: Frame numbers of the video, T of them; ``[0, 0, 0, 0]`` for an image.
        total_frames: Frames of the whole video.
        fps: Average frames per second of the video; 0 for an image.
    """

    frame_count: int
    indices: list[int]
    total_frames: int
    fps: float
