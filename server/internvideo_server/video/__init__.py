"""Sampling and decoding of videos and images into 448 x 448 frames, in processes of their own."""

from internvideo_server.video._decoder import FrameBuffer, FrameDecoder
from internvideo_server.video._key import extra_id, frames_key
from internvideo_server.video._request import FRAME_SIZE, IMAGE_FRAMES, DecodedMedia, DecodeLimits, DecodeRequest, ReaderName
from internvideo_server.video._sampling import Sampling, sample_indices

__all__ = [
    "FRAME_SIZE",
    "IMAGE_FRAMES",
    "DecodeLimits",
    "DecodeRequest",
    "DecodedMedia",
    "FrameBuffer",
    "FrameDecoder",
    "ReaderName",
    "Sampling",
    "extra_id",
    "frames_key",
    "sample_indices",
]
