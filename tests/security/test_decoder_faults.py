"""Files that a decoder cannot make sense of: each an answer that says why, from a decoder that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from internvideo_server.errors import ErrorCode
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.preprocessing.video import DecodeLimits, FrameDecoder, _worker
from tests.video_decoding import DATA, V0, decode, refusal


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder(1) as decoder:
        yield decoder


@pytest.mark.parametrize(
    ("file", "known", "unknown", "named"),
    [
        ("v0.mp4", b"avc1", b"abcd", "abcd"),
        ("mpeg4.avi", b"FMP4", b"ZZZZ", "ZZZZ"),
        ("vp9.webm", b"V_VP9", b"V_XYZ", "V_XYZ"),
        ("mjpeg.avi", b"MJPG", b"Q\xffQ ", ""),
    ],
)
def test_a_codec_that_nobody_knows_is_refused_by_its_name(
    decoder: FrameDecoder, file: str, known: bytes, unknown: bytes, named: str
) -> None:
    content = (DATA / file).read_bytes()
    assert known in content
    assert f"codec {named}" in refusal(decoder, content.replace(known, unknown)).message
    assert decode(decoder, V0)[0].frame_count == 8


@pytest.mark.parametrize("pattern", ["unknown_codec.*", "INTERNAL_*"])
def test_the_files_of_the_review_are_refused_by_their_codec(decoder: FrameDecoder, shared_dir: Path, pattern: str) -> None:
    files = list((shared_dir / "cases" / "hostile").glob(pattern))
    assert files
    for file in files:
        assert "codec" in refusal(decoder, file).message


def test_what_nobody_foresaw_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> NoReturn:
        raise ZeroDivisionError("a library's own words")

    monkeypatch.setattr(_worker, "decode_video", fails)
    request = {"kind": "video", "sampling": {}, "threads": 1, "skip_frames": 0}
    with FrameBuffer() as buffer, V0.open("rb") as medium:
        answer = _worker._decode(request, medium.fileno(), buffer.fd, DecodeLimits())
    assert answer["error"] == ErrorCode.INVALID_ARGUMENT
    assert "ZeroDivisionError" in answer["message"]
    assert "own words" not in answer["message"]  # they go to the log, since they may name what is the server's
    assert "own words" in answer["detail"]
