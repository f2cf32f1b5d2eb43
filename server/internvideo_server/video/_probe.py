"""Open a video and look at its header before anything is decoded.

A 10,000 x 10,000 video costs gigabytes. PyAV opens the file with the sniffed container format forced and no protocol but
``file``.
"""

from __future__ import annotations

import av
import av.error
from av.codec.hwaccel import HWAccel

from internvideo_server.errors import ServingError, invalid
from internvideo_server.video._request import DecodeLimits

_FILE_ONLY = {"protocol_whitelist": "file"}


def open_video(
    path: str, container: str, accelerator: HWAccel | None = None
) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a file's best video stream.

    Args:
        path: The file.
        container: FFmpeg's format name.
        accelerator: Decodes instead of the CPU.

    Raises:
        ServingError: INVALID_ARGUMENT: it has none.
        FFmpegError: The file is damaged.
    """
    file = av.open("file:" + path, format=container, options=_FILE_ONLY, metadata_errors="replace", hwaccel=accelerator)
    stream = file.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        file.close()
        raise invalid("the file has no video stream", "url")
    return file, stream


def check(file: av.container.InputContainer, stream: av.VideoStream, limits: DecodeLimits) -> None:
    """Check that the file is a video that the server takes on.

    Raises:
        ServingError: INVALID_ARGUMENT with the reason (param ``url``).
    """
    width, height = stream.codec_context.width, stream.codec_context.height
    seconds = (file.duration or 0) / av.time_base
    if width * height > limits.max_video_pixels:
        raise invalid(f"the video is {width}x{height}; at most {limits.max_video_pixels} pixels a frame are taken", "url")
    if seconds > limits.max_duration_s:
        raise invalid(f"the video is {seconds:.0f} s long; at most {limits.max_duration_s:.0f} s are taken: cut it", "url")


def damaged(error: av.error.FFmpegError) -> ServingError:
    """What to say of a file that does not open."""
    return invalid(f"the video cannot be opened: it is damaged or cut off ({error.strerror})", "url")
