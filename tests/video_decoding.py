"""Decoding with little to say: what the tests of decoding share."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.media import Budget, Media, MediaPolicy
from internvideo_server.video import DecodedMedia, DecodeRequest, FrameBuffer, FrameDecoder, Sampling

DATA = Path(__file__).parent / "data"
V0, V1 = DATA / "v0.mp4", DATA / "v1.mp4"


def decode(
    decoder: FrameDecoder,
    source: Path | bytes,
    kind: Literal["video", "image"] = "video",
    budget: Budget | None = None,
    num_frames: int | None = 8,
    start: float | None = None,
) -> tuple[DecodedMedia, np.ndarray]:
    content = source if isinstance(source, bytes) else source.read_bytes()
    request = DecodeRequest(kind, Sampling(num_frames=num_frames, start=start), "part")
    with Media.from_chunks([content], MediaPolicy(), None) as medium, FrameBuffer() as buffer:
        return decoder.decode(medium.fd, request, buffer, budget), buffer.frames()


def refusal(decoder: FrameDecoder, source: Path | bytes, kind: Literal["video", "image"] = "video") -> ServingError:
    with pytest.raises(ServingError) as caught:
        decode(decoder, source, kind)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.param == "part.url"
    return caught.value
