"""What `preprocessing` refuses, and how frames leave it: given to `vit` where it takes them, else as the request's tensor."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ServingError
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.handoff import FramePart, Held, MoreFrames
from internvideo_server.limits import EngineLimits
from internvideo_server.metrics import Meter
from internvideo_server.preprocessing.chat import word_list
from internvideo_server.preprocessing.frame_store import FrameStore
from internvideo_server.preprocessing.media import MediaPolicy
from internvideo_server.preprocessing.pipeline import Preprocessed, Preprocessor, medium_report
from internvideo_server.preprocessing.video import DecodedMedia, FrameDecoder, FrameSampling
from internvideo_server.preprocessing.video._timeline import Timeline
from tests.asking import until
from tests.tokenizer_files import small_tokenizers
from tests.video_decoding import V0, V1

CONTEXT = 4096  # tokens


class Vit:
    """What `vit` says to the questions."""

    def __init__(self) -> None:
        self.takes = True
        self.given: dict[bytes, FrameBuffer] = {}
        self.parts: list[FramePart] = []
        self.told: list[MoreFrames] = []
        self.has: set[bytes] = set()
        self.offers = 0
        self.released: list[int] = []

    def reserve(self, request_id: str, deadline: float) -> Any:
        return VitReservation(self)


class VitReservation:
    def __init__(self, vit: Vit) -> None:
        self.vit, self.number = vit, 0

    def hold_embeddings(self, keys: list[bytes]) -> set[bytes]:
        held = self.vit.has & set(keys)
        self.number = 5 if held else 0
        return held

    def hold_frames(self, parts: list[tuple[FramePart, FrameBuffer]]) -> bool:
        self.vit.offers += 1
        if self.vit.takes:
            self.vit.parts = [part for part, _ in parts]
            self.vit.given = {part.key: buffer for part, buffer in parts}
            self.number = self.number or 9
        return self.vit.takes

    def tell(self, more: MoreFrames) -> Held:
        self.vit.told.append(more)
        return Held()

    def release(self) -> None:
        if self.number:
            self.vit.released.append(self.number)


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder(1) as decoder:
        yield decoder


@pytest.fixture
def vit() -> Vit:
    return Vit()


@pytest.fixture
def prepare(decoder: FrameDecoder, vit: Vit) -> Any:
    tokenizer = small_tokenizers().chat
    limits = EngineLimits("float32", tokenizer.vocab_size, 64, 2, 4000, CONTEXT, 4000, 2 * 64 * 16)
    meter = Meter()
    store = FrameStore(decoder, 1 << 30, meter)
    preprocessor = Preprocessor(tokenizer, limits, MediaPolicy((V0.parent,)), store, 128, vit, meter)

    def ask(
        *paths: Path,
        frames: int = 8,
        output_len: int = 8,
        question: str = "?",
        parts: Any = None,
        return_frames: bool = False,
    ) -> Preprocessed:
        parts = parts or [{"type": "video_url", "video_url": {"url": path.as_uri(), "num_frames": frames}} for path in paths]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        try:
            raw = json.dumps(messages).encode()
            return preprocessor(raw, output_len, None, Deadline(), "request", return_frames=return_frames)
        finally:
            until(lambda: not store._decoding, "the decoding goes on")

    return ask


def test_frames_that_vit_takes_are_not_sent(prepare: Any, vit: Vit) -> None:
    prepared = prepare(V0, V1, V0)
    assert prepared.frames.shape == (0, 3, 448, 448)
    assert prepared.reservation == 9
    assert [(medium.frame_count, medium.sent) for medium in prepared.media] == [(8, 0)] * 3
    assert list(vit.given) == [prepared.media[0].key, prepared.media[1].key]
    assert [part.frame_count for part in vit.parts] == [8, 8]


def test_frames_that_vit_does_not_take_are_sent(prepare: Any, vit: Vit) -> None:
    vit.takes = False
    prepared = prepare(V0, V1, V0)
    assert [(medium.frame_count, medium.sent) for medium in prepared.media] == [(8, 8), (8, 8), (8, 0)]
    assert prepared.reservation == 0
    vit.takes = True
    prepare(V0, V1)  # cached: whole
    assert np.array_equal(prepared.frames, np.concatenate([buffer.frames() for buffer in vit.given.values()]))


def test_who_asks_for_the_frames_gets_all_of_them_and_nothing_waits_in_vit(prepare: Any, vit: Vit) -> None:
    vit.has = {prepare(V0).media[0].key}
    vit.offers = 0
    prepared = prepare(V0, V1, return_frames=True)
    assert prepared.frames.shape == (16, 3, 448, 448)
    assert [medium.sent for medium in prepared.media] == [8, 8]
    assert (prepared.reservation, vit.offers) == (0, 0)


def test_each_medium_is_reported_as_it_was_sampled(prepare: Any, vit: Vit) -> None:
    first, second, again = (medium.report for medium in prepare(V0, V1, V0).media)
    assert (first.frames, first.frame_numbers, first.fps) == (8, again.frame_numbers, None)
    assert first.frame_numbers == sorted(first.frame_numbers) != second.frame_numbers
    assert (again.frames, again.cached_frames) == (8, 8)
    vit.has = {prepare(V0).media[0].key}
    [known] = prepare(V0).media  # its embeddings are held: nothing is decoded
    assert (known.sent, known.report) == (0, again)


@pytest.mark.parametrize(
    ("fps", "max_frames", "told"),
    [(2.0, 128, None), (2.0, 32, None), (2.0, 16, 0.968), (2.1, 32, None), (1000.0, 32, 2.0)],
)
def test_a_rate_that_was_lowered_to_fit_is_told(fps: float, max_frames: int, told: float | None) -> None:
    sampling = FrameSampling(fps=fps)
    video = Timeline(480, 30.0)  # 16 s
    numbers = sampling.indices(video, default_frames=80, max_frames=max_frames)
    decoded = DecodedMedia(len(numbers), numbers, video.frame_count, video.fps, video.begins(numbers))
    report = medium_report(decoded, sampling, max_frames, cached=False)
    assert report.fps == (None if told is None else pytest.approx(told, rel=0.05))


def test_embeddings_and_frames_share_a_reservation(prepare: Any, vit: Vit) -> None:
    first = prepare(V0)
    vit.has = {first.media[0].key}
    prepared = prepare(V0, V1)
    assert prepared.reservation == 5
    assert list(vit.given) == [prepared.media[1].key]
    vit.takes = False
    prepared = prepare(V0, V1)
    assert (prepared.reservation, len(prepared.frames)) == (5, 8)
    assert [medium.sent for medium in prepared.media] == [0, 8]


def test_more_media_than_the_engine_takes_are_refused_before_one_is_fetched(prepare: Any) -> None:
    with pytest.raises(ServingError, match="72 frames together, the engine takes 64") as caught:
        prepare(*[V0.with_name("missing.mp4")] * 10, frames=8)
    assert caught.value.param == "messages.0.content.8.video_url.num_frames"


def test_a_refused_request_lets_go_of_what_is_held_for_it(prepare: Any, vit: Vit) -> None:
    parts = [{"type": "video_url", "video_url": {"url": V0.as_uri(), "fps": 2.0}}]  # how many frames that is, the file tells
    first = prepare(parts=parts)
    vit.has = {first.media[0].key}
    with pytest.raises(ServingError, match="maximum context length is 4096 tokens"):
        prepare(parts=parts, question="\n" * (CONTEXT - len(first.prompt.input_ids) + 1))
    assert vit.released == [5]
    prepare(parts=parts)
    assert vit.released == [5]


def test_nothing_is_given_for_a_request_that_is_refused(prepare: Any, vit: Vit) -> None:
    with pytest.raises(ServingError, match="maximum context length is 4096 tokens"):
        prepare(V0, question="\n" * CONTEXT)
    prepare()
    assert vit.offers == 0


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded_or_a_file_is_opened(prepare: Any) -> None:
    with pytest.raises(
        ServingError, match="maximum context length is 4096 tokens, but the messages' text alone has at least"
    ) as caught:
        prepare(Path("/nowhere.mp4"), question="x y " * 1_000_000)
    assert caught.value.param == "messages"


def test_as_many_frames_as_the_engine_takes_and_not_one_group_more(prepare: Any) -> None:
    assert prepare(V0, V1, frames=32).prompt.rows == 64 * 16
    with pytest.raises(ServingError, match="72 frames together, the engine takes 64") as caught:
        prepare(V0, V1, frames=36)
    assert caught.value.param == "messages.0.content.1.video_url.num_frames"


@pytest.mark.parametrize(
    ("given", "together"), [({}, 160), ({"num_frames": "auto"}, 256)], ids=["the default", "the original's rule"]
)
def test_videos_that_are_too_many_together_are_refused_before_they_are_opened(
    prepare: Any, given: dict[str, Any], together: int
) -> None:
    parts = [{"type": "video_url", "video_url": {"url": f"file:///nowhere{n}.mp4", **given}} for n in range(2)]
    with pytest.raises(ServingError, match=rf"{together // 2} frames together, the engine takes 64"):
        prepare(parts=parts)


def test_an_answer_is_cut_down_to_what_is_left_of_the_context(prepare: Any) -> None:
    left = CONTEXT - len(prepare().prompt.input_ids)
    assert prepare(output_len=left).max_new_tokens == prepare(output_len=-1).max_new_tokens == left
    assert prepare(output_len=left + 1).max_new_tokens == left


def test_a_prompt_leaves_room_for_one_token(prepare: Any) -> None:
    one, two = (len(prepare(question=text).prompt.input_ids) for text in ("\n", "\n\n"))
    assert two == one + 1
    longest = CONTEXT - 1 - (one - 1)
    assert prepare(output_len=-1, question=longest * "\n").max_new_tokens == 1
    with pytest.raises(
        ServingError, match=f"maximum context length is {CONTEXT} tokens, but the prompt has {CONTEXT} "
    ) as caught:
        prepare(output_len=-1, question=(longest + 1) * "\n")
    assert caught.value.param == "messages"


def test_frames_that_the_context_does_not_hold_are_refused_before_the_video_is_opened(decoder: FrameDecoder, vit: Vit) -> None:
    tokenizer, meter = small_tokenizers().chat, Meter()
    limits = EngineLimits("float32", tokenizer.vocab_size, 64, 2, 1023, 1024, 1024, 2 * 512 * 16)
    prepare = Preprocessor(tokenizer, limits, MediaPolicy((V0.parent,)), FrameStore(decoder, 0, meter), 512, vit, meter)
    for frames, text in ((512, r"the prompt has \d+ \(8192 of them visual\)"), (8, None)):
        part = {"type": "video_url", "video_url": {"url": "file:///nowhere.mp4", "num_frames": frames}}
        messages = json.dumps([{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]).encode()
        with pytest.raises(ServingError, match=text or "outside the folders"):
            prepare(messages, 8, None, Deadline(), "request")


@pytest.mark.parametrize("output_len", [0, -2])
def test_no_tokens_to_generate_is_refused(prepare: Any, output_len: int) -> None:
    with pytest.raises(ServingError, match=f"must be 1 or more, got {output_len}"):
        prepare(output_len=output_len)


def test_words_are_written_as_the_engine_reads_them() -> None:
    assert word_list([[5], [6, 7], [8]]).tolist() == [[5, 6, 7, 8], [1, 3, 4, -1]]


def test_images_in_a_row_are_one_video_of_as_many_frames(prepare: Any) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}, "as": "frame"}] * 6
    prepared = prepare(parts=parts)
    assert [medium.frame_count for medium in prepared.media] == [8]
    with pytest.raises(ServingError, match='"as": "frame"') as caught:
        prepare(parts=[*[{"type": "image_url", "image_url": {"url": url}, "as": "image"}] * 17])
    assert caught.value.param == "messages.0.content.16.image_url"
