"""Decoding with little to say: what the tests of decoding share."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.preprocessing.media import Media, MediaPolicy
from internvideo_server.preprocessing.video import DecodedMedia, DecodeRequest, FrameDecoder, FrameSampling
from tests.asking import until

DATA = Path(__file__).parent / "data"
V0, V1 = DATA / "v0.mp4", DATA / "v1.mp4"


def ready_pids(decoder: FrameDecoder) -> list[int]:
    """The workers' process ids when each waits for its medium: those that had one are renewed a moment after their answer."""
    until(lambda: decoder._idle.qsize() == len(decoder._workers) == len(decoder.worker_pids), "decoders are ready")
    return decoder.worker_pids


def decode(
    decoder: FrameDecoder,
    source: Path | bytes,
    kind: Literal["video", "image"] = "video",
    deadline: Deadline | None = None,
    num_frames: int | None = 8,
    start: float | None = None,
) -> tuple[DecodedMedia, np.ndarray]:
    content = source if isinstance(source, bytes) else source.read_bytes()
    request = DecodeRequest(kind, FrameSampling(num_frames=num_frames, start=start), "part")
    with Media.from_chunks([content], MediaPolicy(), None) as medium, FrameBuffer() as buffer:
        return decoder.decode(medium.fd, request, buffer, deadline), buffer.frames()


def refusal(
    decoder: FrameDecoder, source: Path | bytes, kind: Literal["video", "image"] = "video", num_frames: int = 8
) -> ServingError:
    with pytest.raises(ServingError) as caught:
        decode(decoder, source, kind, num_frames=num_frames)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.param == "part.url"
    return caught.value
