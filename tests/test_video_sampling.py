"""The sampling formula and what requests may ask of it."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.preprocessing.video import FrameSampling, sample_indices
from internvideo_server.preprocessing.video._sampling import frames_for_rate
from internvideo_server.preprocessing.video._timeline import Timeline

COUNTS = st.integers(1, 64).map(lambda groups: 4 * groups)
LENGTHS = st.integers(1, 200_000)
RATES = st.floats(0.5, 240)


@pytest.mark.parametrize("case", ["f8", "f16"])
def test_the_original_frame_numbers(case: str, golden: Path) -> None:
    video = json.loads((golden / case / "reference.json").read_text())["video"]
    wanted = video["frame_indices"]
    assert sample_indices(video["len"], video["avg_fps"], len(wanted)) == wanted


def test_known_frame_numbers() -> None:
    assert sample_indices(895, 30.0, 8) == [55, 167, 279, 390, 502, 614, 725, 837]
    assert sample_indices(7, 1.0, 12) == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6]  # halves to even: 0.5 -> 0, 1.5 -> 2
    assert sample_indices(1, 30.0, 4) == [0, 0, 0, 0]
    assert sample_indices(300, 30.0, 4, start=2.0, end=4.0) == [67, 82, 97, 112]


@given(LENGTHS, RATES, COUNTS)
def test_frame_numbers_rise_within_the_video(total: int, fps: float, count: int) -> None:
    indices = sample_indices(total, fps, count)
    assert len(indices) == count
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < total


@given(LENGTHS, RATES, COUNTS, st.floats(0, 1), st.floats(0, 1))
def test_frame_numbers_stay_within_the_range(total: int, fps: float, count: int, a: float, b: float) -> None:
    start, end = sorted((a * total / fps, b * total / fps))
    if round(start * fps) >= total:
        return
    indices = sample_indices(total, fps, count, start, end)
    assert round(start * fps) <= indices[0] <= indices[-1] <= min(round(end * fps), total - 1)


@given(LENGTHS, RATES, COUNTS, st.sampled_from([1e9, sys.float_info.max]))
def test_an_end_beyond_the_video_is_its_end(total: int, fps: float, count: int, end: float) -> None:
    whole = FrameSampling(num_frames=count, start=0.0, end=end).indices(Timeline(total, fps), default_frames=80, max_frames=256)
    assert whole == sample_indices(total, fps, count)


@given(st.floats(0, 1e6), st.floats(1e-3, 1e3), COUNTS)
def test_a_rate_gives_a_multiple_of_four_within_the_limits(seconds: float, fps: float, max_frames: int) -> None:
    count = frames_for_rate(seconds, fps, max_frames)
    assert count % 4 == 0
    assert 4 <= count <= max_frames
    assert abs(count - min(max(seconds * fps, 4), max_frames)) <= 2 + 1e-6


@pytest.mark.parametrize(
    ("sampling", "count"),
    [
        (FrameSampling(), 80),
        (FrameSampling(num_frames=12), 12),
        (FrameSampling(fps=1.0), 32),  # 30 s -> 30 frames -> 32 (7.5 groups, half to even)
        (FrameSampling(fps=1.0, start=10.0, end=20.0), 8),  # 10 frames, 2.5 groups
        (FrameSampling(fps=1.0, start=10.0, end=1e9), 20),
        (FrameSampling(fps=0.01), 4),
        (FrameSampling(fps=1e9), 128),
    ],
)
def test_how_many_frames_a_request_means(sampling: FrameSampling, count: int) -> None:
    assert len(sampling.indices(Timeline(900, 30.0), default_frames=80, max_frames=128)) == count


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (FrameSampling(num_frames=0), "num_frames"),
        (FrameSampling(num_frames=3), "num_frames"),
        (FrameSampling(num_frames=-1), "num_frames"),
        (FrameSampling(num_frames=-4), "num_frames"),
        (FrameSampling(num_frames=132), "num_frames"),
        (FrameSampling(num_frames=10**9), "num_frames"),
        (FrameSampling(num_frames=8, fps=1.0), "fps"),
        (FrameSampling(fps=0.0), "fps"),
        (FrameSampling(fps=-1.0), "fps"),
        (FrameSampling(fps=math.nan), "fps"),
        (FrameSampling(fps=math.inf), "fps"),
        (FrameSampling(start=-math.inf), "start"),
        (FrameSampling(fps=1.0, max_frames=3), "max_frames"),
        (FrameSampling(num_frames=8, max_frames=8), "max_frames"),
        (FrameSampling(fps=1.0, by_duration=True), "fps"),
        (FrameSampling(start=math.nan), "start"),
        (FrameSampling(end=math.inf), "end"),
        (FrameSampling(end=0.0), "start"),
        (FrameSampling(start=5.0, end=5.0), "start"),
        (FrameSampling(start=6.0, end=5.0), "start"),
    ],
)
def test_impossible_options_are_refused_without_a_video(sampling: FrameSampling, field: str) -> None:
    with pytest.raises(ServingError) as caught:
        sampling.check(128, "messages.0.content.1.video_url")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.param == f"messages.0.content.1.video_url.{field}"


@pytest.mark.parametrize(
    ("seconds", "most", "count"), [(10, 512, 128), (200, 512, 200), (203, 512, 200), (9000, 512, 512), (200, 128, 128)]
)
def test_auto_is_the_originals_number_for_the_length(seconds: int, most: int, count: int) -> None:
    video = Timeline(25 * seconds + 1, 25.0)
    assert len(FrameSampling(by_duration=True).indices(video, default_frames=80, max_frames=most)) == count
    assert len(FrameSampling(by_duration=True, max_frames=66).indices(video, default_frames=80, max_frames=most)) == 64


def test_a_rate_keeps_to_the_requests_own_limit() -> None:
    video = Timeline(2500, 25.0)
    for own, count in ((30, 28), (64, 64), (1000, 100)):
        assert len(FrameSampling(fps=1.0, max_frames=own).indices(video, default_frames=80, max_frames=128)) == count


@pytest.mark.parametrize("bounds", [None, [*range(101)]])
def test_a_start_below_zero_counts_from_the_end(bounds: list[float] | None) -> None:
    video = Timeline(100, 1.0, None if bounds is None else np.array(bounds, np.float64))
    last = FrameSampling(num_frames=8, start=-30.0).indices(video, default_frames=80, max_frames=128)
    assert last == FrameSampling(num_frames=8, start=70.0).indices(video, default_frames=80, max_frames=128)
    whole = FrameSampling(num_frames=8, start=-500.0).indices(video, default_frames=80, max_frames=128)
    assert whole == FrameSampling(num_frames=8, start=0.0).indices(video, default_frames=80, max_frames=128)
    with pytest.raises(ServingError, match="how many frames it has a second"):
        FrameSampling(start=-1.0).indices(Timeline(2, 0.0), default_frames=8, max_frames=128)


def test_a_wrong_number_of_frames_is_named_with_what_would_be_right() -> None:
    with pytest.raises(ServingError, match="multiple of 4 from 4 to 128, got 3"):
        FrameSampling(num_frames=3).check(128)


@pytest.mark.parametrize("start", [30.0, 1e300, sys.float_info.max])
def test_a_start_after_the_end_of_the_video_is_refused(start: float) -> None:
    with pytest.raises(ServingError, match="beyond the end") as caught:
        FrameSampling(start=start).indices(Timeline(900, 30.0), default_frames=80, max_frames=128)
    assert caught.value.param == "start"


@pytest.mark.parametrize(
    "sampling", [FrameSampling(fps=2.0), FrameSampling(fps=2.0, end=1.0), FrameSampling(num_frames=4, start=1.0)]
)
def test_a_single_frame_needs_no_rate(sampling: FrameSampling) -> None:
    assert sampling.indices(Timeline(1, 0.0), default_frames=80, max_frames=128) == [0, 0, 0, 0]


@pytest.mark.parametrize("option", ["fps", "start", "end"])
def test_options_in_seconds_are_refused_for_a_video_without_a_rate(option: str) -> None:
    with pytest.raises(ServingError, match="how many frames it has a second") as caught:
        FrameSampling(**{option: 1.0}).indices(Timeline(2, 0.0), default_frames=8, max_frames=128)
    assert caught.value.param == option
    assert FrameSampling(start=0.0).indices(Timeline(2, 0.0), default_frames=4, max_frames=128) == sample_indices(2, 0.0, 4)


@pytest.mark.parametrize(
    ("seconds", "max_frames", "count"), [(1000.0, 128, 128), (1000.0, 126, 124), (0.01, 128, 4), (math.inf, 128, 128)]
)
def test_a_rate_never_asks_for_more_than_the_most_frames(seconds: float, max_frames: int, count: int) -> None:
    assert frames_for_rate(seconds, 1.0, max_frames) == count
