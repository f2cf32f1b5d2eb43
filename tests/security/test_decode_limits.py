"""What one medium, or one request, may cost."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.preprocessing.video import DecodeLimits, FrameDecoder
from internvideo_server.preprocessing.video._probe import check_cost
from internvideo_server.settings import PreprocessingSettings, VideoReader
from tests.bombs import bomb
from tests.video_decoding import V0, V1, decode, ready_pids, refusal


def test_a_video_that_costs_too_much_is_refused_with_the_numbers_before_it_is_decoded() -> None:
    with FrameDecoder(1, DecodeLimits(max_cost=0.001)) as decoder:
        message = refusal(decoder, V0).message
    assert "640x360" in message
    assert "0.001" in message


def test_the_bomb_of_the_review_is_refused_by_its_cost(shared_dir: Path) -> None:
    with FrameDecoder(1) as decoder:
        assert "4096x4096" in refusal(decoder, shared_dir / "cases" / "hostile" / "vp9_4096_15k.webm").message
        assert decode(decoder, V1)[0].frame_count == 8


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_a_bomb_is_refused_before_it_is_decoded_whatever_reads_it(tmp_path: Path, reader: VideoReader) -> None:
    with FrameDecoder(1, DecodeLimits(reader=reader)) as decoder:
        assert "250.1 gigapixels" in refusal(decoder, bomb(tmp_path / "a.webm", 15_000), num_frames=80).message
        assert decode(decoder, V1)[0].frame_count == 8


def test_frames_that_must_be_counted_are_not_counted_where_that_costs_too_much(tmp_path: Path) -> None:
    """With time stamps that repeat, frames can be told by decoding all of them alone."""
    with FrameDecoder(1) as decoder:
        assert "251.7 gigapixels" in refusal(decoder, bomb(tmp_path / "a.webm", 15_000, repeats=2)).message


def test_an_animation_is_refused_by_its_cost(tmp_path: Path) -> None:
    pictures = [Image.new("L", (64, 64), 10 * number) for number in range(20)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], duration=100)
    with FrameDecoder(1, DecodeLimits(max_cost=1e-4)) as decoder:
        assert "40 packets of 64x64" in refusal(decoder, tmp_path / "a.png").message


@pytest.mark.parametrize(
    ("given", "timeout_s", "cost"),
    [
        ({}, 150.0, 150.0),
        ({"request_timeout": 60.0}, 30.0, 30.0),
        ({"request_timeout": 60.0, "decode_workers": 4 * len(os.sched_getaffinity(0))}, 30.0, 7.5),
        ({"decode_timeout": 10.0}, 10.0, 10.0),
        ({"max_decode_cost": 5.0}, 150.0, 5.0),
    ],
)
def test_limits_follow_from_the_requests_time_and_the_cores(given: dict[str, Any], timeout_s: float, cost: float) -> None:
    settings = PreprocessingSettings(tokenizer_path=Path("/t"), engine_dir=Path("/e"), handoff_id="x", **given)
    limits = DecodeLimits.of(settings)
    assert (limits.timeout_s, limits.max_cost) == (timeout_s, cost)


@pytest.mark.parametrize(("minutes", "frames"), [(10, 80), (60, 512)])
def test_long_videos_pass_on_two_cores(minutes: int, frames: int) -> None:
    """The cost is that of the worst case: 1080p at 30 frames a second, a key frame every 250 (measured: docs/security.md)."""
    total, group = minutes * 60 * 30, 250
    costs = [number % group + 1 for number in range(total // (2 * frames), total, total // frames)]
    check_cost(sum(costs) / 2, 1920, 1080, DecodeLimits())


def test_a_medium_that_takes_too_long_is_refused_and_the_next_is_decoded() -> None:
    with FrameDecoder(1, DecodeLimits(timeout_s=0.5)) as decoder:
        (pid,) = ready_pids(decoder)
        os.kill(pid, signal.SIGSTOP)  # it takes its job and never answers
        with pytest.raises(ServingError, match=r"longer than the 0\.5 s") as caught:
            decode(decoder, V0)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
        assert ready_pids(decoder) != [pid]
        assert refusal(decoder, b"text").message
