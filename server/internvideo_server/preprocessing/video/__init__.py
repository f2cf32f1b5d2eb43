"""Sampling and decoding of videos and images into 448 x 448 frames, in processes of their own."""

from ._decoder import FrameDecoder
from ._key import frames_key
from ._request import IMAGE_FRAMES, DecodedMedia, DecodeLimits, DecodeRequest
from ._sampling import FrameSampling, sample_indices

__all__ = [
    "IMAGE_FRAMES",
    "DecodeLimits",
    "DecodeRequest",
    "DecodedMedia",
    "FrameDecoder",
    "FrameSampling",
    "frames_key",
    "sample_indices",
]
