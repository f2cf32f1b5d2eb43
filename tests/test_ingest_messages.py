"""The shapes in which clients write media become one, and options that cannot be meant are refused."""

from __future__ import annotations

from typing import Any

import pytest

from internvideo_client import ApiError
from internvideo_client.ingest import SamplingDefaults, normal_messages

URL = "https://example.com/a.mp4"


def part(given: Any, defaults: SamplingDefaults | None = None) -> Any:
    (message,) = normal_messages([{"role": "user", "content": [given]}], defaults or SamplingDefaults(), 128)
    return message["content"][0]


@pytest.mark.parametrize(
    "given",
    [
        {"type": "video_url", "video_url": {"url": URL}},
        {"type": "video_url", "video_url": URL},
        {"video_url": URL},
        {"video_url": {"url": URL}},
        {"type": "video", "video": URL},
        {"type": "input_video", "video_url": URL},
        {"type": "video_url", "video_url": {"url": URL}, "uuid": "a", "cache_control": {"type": "ephemeral"}, "max_pixels": 5},
        {"type": "file", "file": {"file_data": URL}},
        {"type": "input_file", "file_url": URL},
    ],
)
def test_a_video_in_any_shape(given: Any) -> None:
    assert part(given) == {"type": "video_url", "video_url": {"url": URL}}


@pytest.mark.parametrize("given", [{"type": "input_image", "image_url": URL, "detail": "low"}, {"type": "image", "image": URL}])
def test_an_image_in_any_shape(given: Any) -> None:
    assert part(given) == {"type": "image_url", "image_url": {"url": URL}}


@pytest.mark.parametrize("given", ["a", {"type": "input_text", "text": "a"}, {"text": "a"}, {"type": "refusal", "refusal": "a"}])
def test_a_text_in_any_shape(given: Any) -> None:
    assert part(given) == {"type": "text", "text": "a"}


def test_a_file_by_its_id() -> None:
    assert part({"type": "input_file", "file_id": "file-1"})["video_url"] == {"url": "file-id:file-1"}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"num_frames": 8.0}, {"num_frames": 8}),
        ({"num_frames": 9}, {"num_frames": 12}),
        ({"nframes": 3}, {"num_frames": 4}),
        ({"num_frames": -1}, {"num_frames": 128}),
        ({"num_frames": 8, "fps": -1}, {"num_frames": 8}),
        ({"fps": 2, "video_start": 1, "video_end": 3.5}, {"fps": 2, "start": 1, "end": 3.5}),
        ({"max_frames": 30}, {"num_frames": 32}),
        ({"fps": 1, "max_frames": 30}, {"fps": 1, "max_frames": 30}),
        ({"num_frames": "auto", "max_frames": 64}, {"num_frames": "auto", "max_frames": 64}),
        ({"start": -30}, {"start": -30}),
        ({"num_frames": 0}, {"num_frames": 0}),  # preprocessing refuses it by name
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_options_inside_or_beside(options: dict[str, Any], wanted: dict[str, Any], inside: bool) -> None:
    given = {"type": "video_url", "video_url": {"url": URL, **(options if inside else {})}, **({} if inside else options)}
    assert part(given) == {"type": "video_url", "video_url": {"url": URL, **wanted}}


def test_defaults_of_the_request_are_for_videos_that_say_nothing() -> None:
    defaults = SamplingDefaults.of({"video": {"num_frames": 6, "fps": -1}}, {"fps": 1})
    assert part({"video_url": URL}, defaults)["video_url"] == {"url": URL, "num_frames": 8}
    assert part({"video_url": URL, "fps": 3}, defaults)["video_url"] == {"url": URL, "fps": 3}
    assert SamplingDefaults.of(None, {"fps": 1, "max_pixels": 5, "do_sample_frames": True}) == SamplingDefaults(fps=1)


def test_what_is_no_known_shape_is_left_for_preprocessing_to_name() -> None:
    given = {"type": "input_audio", "input_audio": {}}
    assert part(given) == given
    assert part({"type": "video_url", "video_url": URL, "speed": 2})["speed"] == 2


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"type": "video", "video": ["a.png", "b.png"], "num_frames": 8}, "messages.0.content.0.video"),
        ({"type": "video", "video": []}, "messages.0.content.0.video"),
        ({"type": "video", "video": [{"url": "a.png"}]}, "messages.0.content.0.video"),
        ({"video_url": URL, "num_frames": 4, "max_frames": 8}, "messages.0.content.0.video_url"),
        ({"video_url": URL, "fps": 1, "min_frames": 8}, "messages.0.content.0.video_url"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        part(given)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("media_io", "processor"),
    [
        ({"audio": {"rate": 1}}, None),
        ({"image": {"image_mode": "L"}}, None),
        ({"video": {"num_frames": 8, "fps": 1}}, None),
        ({"video": 3}, None),
        ({"video": {"size": 3}}, None),
        (None, {"size": 3}),
    ],
)
def test_options_that_would_be_lost_are_refused(media_io: Any, processor: Any) -> None:
    with pytest.raises(ApiError, match="kwargs"):
        SamplingDefaults.of(media_io, processor)
