"""Open a video and look at its header before anything is decoded.

A 10,000 x 10,000 video costs gigabytes. PyAV opens the file with the sniffed container format forced and no protocol but
``file``.
"""

from __future__ import annotations

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.stream import Disposition

from internvideo_server.errors import ServingError, invalid

from ._codec_name import codec_name
from ._request import DecodeLimits

_COUNTED_FROM_ZERO = ("mov", "matroska", "flv")  # the length in the header
_FILE_ONLY = {"protocol_whitelist": "file"}
# Their blocks say when they are shown and which are key frames; parsing each for it takes a third of the time of a long one.
_AS_WRITTEN = {"matroska": {"fflags": "+noparse+nofillin"}, "flv": {"fflags": "+noparse+nofillin"}}


def open_video(
    path: str, container: str, accelerator: HWAccel | None = None
) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a file's best video stream; a cover picture does not count.

    Args:
        path: The file.
        container: FFmpeg's format name.
        accelerator: Decodes instead of the CPU.

    Raises:
        ServingError: INVALID_ARGUMENT: it has none, or one of a codec that FFmpeg cannot read.
        FFmpegError: The file is damaged.
    """
    options = _FILE_ONLY | _AS_WRITTEN.get(container, {})
    file = av.open("file:" + path, format=container, options=options, metadata_errors="replace", hwaccel=accelerator)
    stream = file.streams.best("video")
    if isinstance(stream, av.VideoStream) and stream.disposition & Disposition.attached_pic:
        moving = [each for each in file.streams.video if not each.disposition & Disposition.attached_pic]
        if not moving:
            file.close()
            raise invalid("the file has no video: its only picture is the cover of a sound recording; send a video", "url")
        stream = moving[0]
    if not isinstance(stream, av.VideoStream):
        file.close()
        raise invalid("the file has no video stream: send a file with moving pictures", "url")
    if stream.codec_context is None:  # PyAV's types do not say so
        name = codec_name(path, file, stream)
        file.close()
        raise invalid(f"the video's codec {name or '(which the file does not name)'} cannot be read: convert it", "url")
    return file, stream


def check(file: av.container.InputContainer, stream: av.VideoStream, limits: DecodeLimits) -> None:
    """Check that the file is a video that the server takes on.

    Raises:
        ServingError: INVALID_ARGUMENT with the reason (param ``url``).
    """
    width, height = stream.codec_context.width, stream.codec_context.height
    # A live recording begins hours after the moment that its stamps count from. Where that is not told, the frames tell later.
    before = file.start_time if file.format.name.startswith(_COUNTED_FROM_ZERO) else 0
    seconds = 0.0 if before is None else ((file.duration or 0) - max(0, before)) / av.time_base
    if width * height > limits.max_video_pixels:
        raise invalid(
            f"the video is {width}x{height}; at most {limits.max_video_pixels} pixels a frame are taken: make it smaller", "url"
        )
    check_length(seconds, limits)


def check_length(seconds: float, limits: DecodeLimits) -> None:
    """Refuse videos that are too long.

    Raises:
        ServingError: INVALID_ARGUMENT (param ``url``).
    """
    if seconds > limits.max_duration_s:
        raise invalid(f"the video is {seconds:.0f} s long; at most {limits.max_duration_s:.0f} s are taken: cut it", "url")


def check_cost(packets: float, width: int, height: int, limits: DecodeLimits) -> None:
    """Refuse what takes too long, before it is decoded.

    Args:
        packets: Those that are decoded one after the other.
        width: Of a picture.
        height: Of a picture.
        limits: The server's.

    Raises:
        ServingError: INVALID_ARGUMENT with the numbers (param ``url``).
    """
    cost = packets * width * height / 1e9
    if cost > limits.max_cost:
        text = (
            f"the video costs too much: {packets:.0f} packets of {width}x{height} are decoded one after the other, "
            f"{cost:.1f} gigapixels; at most {limits.max_cost:g} are taken: send a smaller one, or more key frames"
        )
        raise invalid(text, "url")


def damaged(error: av.error.FFmpegError) -> ServingError:
    """What to say of a file that does not open."""
    return invalid(f"the video cannot be opened: it is damaged or cut off ({error.strerror})", "url")
