"""Decoding on an NVIDIA GPU, for the codecs and formats in which that gives the very frames of the CPU.

FFmpeg hands the packets to NVDEC and everything else stays as it is in ``_pyav.py``: the plan, the numbers, the resize. The
specifications of these codecs leave a decoder no choice of pixels, and the conversion to RGB is the same one: NV12 holds the
samples of yuv420p in another order. Damage inside a picture goes unseen here: NVDEC shows what it can.
"""

from __future__ import annotations

from functools import cache

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.video.reformatter import ColorRange

_CODECS = ("h264", "hevc", "vp8", "vp9")
_SAMPLES = "yuv420p"  # 10 bit stays on the CPU: swscale (8.1) errs now and then when it reorders it at odd widths
_ONE_CONTEXT: dict[str, object] = {"primary_ctx": "1"}  # for all decoders of a process


@cache
def device() -> HWAccel:
    """The first visible GPU, held from the first call to the end of the process: making a CUDA context takes a while.

    Raises:
        RuntimeError: There is none, or no driver.
    """
    try:
        return accelerator().create(av.Codec("h264", "r"))
    except (av.error.FFmpegError, NotImplementedError) as error:
        raise RuntimeError(f"no GPU that decodes videos: {error}") from None


def accelerator() -> HWAccel:
    """What ``av.open`` takes."""
    return HWAccel("cuda", allow_software_fallback=True, options=_ONE_CONTEXT, is_hw_owned=True)


def takes(codec: av.VideoCodecContext) -> bool:
    """Whether a stream's frames come out of the GPU as they come out of the CPU."""
    return codec.name in _CODECS and codec.pix_fmt == _SAMPLES and codec.color_range != ColorRange.JPEG


def download(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame in the CPU's memory and order of samples. Decoders have few pictures on the GPU: do not let it wait."""
    if frame.sw_format is None:
        return frame  # of the CPU: so is a stream that the GPU did not take
    return frame.reformat(format=_SAMPLES, threads=1)
