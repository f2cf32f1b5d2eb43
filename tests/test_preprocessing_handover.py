"""What `preprocessing` refuses, and how frames leave it: given to `vit` where it takes them, else as the request's tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvideo_server.errors import ServingError
from internvideo_server.frames import FrameStore
from internvideo_server.limits import EngineLimits
from internvideo_server.media import Budget, MediaPolicy
from internvideo_server.metrics import Meter
from internvideo_server.preprocessing import Preprocessed, Preprocessor, word_list
from internvideo_server.video import FrameBuffer, FrameDecoder
from tests.tokenizer_files import small_tokenizers
from tests.video_decoding import V0, V1

CONTEXT = 4096  # tokens


class Vit:
    """What `vit` says to the questions."""

    def __init__(self) -> None:
        self.takes = True
        self.given: dict[bytes, FrameBuffer] = {}
        self.has: set[bytes] = set()
        self.tickets: list[int] = []
        self.dropped: list[int] = []

    def lease(self, request_id: str, keys: list[bytes], deadline: float) -> tuple[int, set[bytes]]:
        held = self.has & set(keys)
        return (5 if held else 0), held

    def drop(self, ticket: int) -> None:
        self.dropped.append(ticket)

    def give(self, ticket: int, request_id: str, frames: dict[bytes, FrameBuffer], deadline: float) -> int:
        self.tickets.append(ticket)
        if not self.takes:
            return 0
        self.given = frames
        return ticket or 9


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
    preprocessor = Preprocessor(
        tokenizer, limits, MediaPolicy((V0.parent,)), FrameStore(decoder, 1 << 30, meter), 128, vit, meter
    )

    def ask(*paths: Path, frames: int = 8, output_len: int = 8, question: str = "?") -> Preprocessed:
        parts = [{"type": "video_url", "video_url": {"url": path.as_uri(), "num_frames": frames}} for path in paths]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        return preprocessor(json.dumps(messages).encode(), output_len, None, Budget(), "request")

    return ask


def test_frames_that_vit_takes_are_not_sent(prepare: Any, vit: Vit) -> None:
    prepared = prepare(V0, V1, V0)
    assert prepared.frames.shape == (0, 3, 448, 448)
    assert prepared.ticket == 9
    assert [(medium.frame_count, medium.sent) for medium in prepared.media] == [(8, 0)] * 3
    assert list(vit.given) == [prepared.media[0].key, prepared.media[1].key]
    assert [buffer.frame_count for buffer in vit.given.values()] == [8, 8]


def test_frames_that_vit_does_not_take_are_sent(prepare: Any, vit: Vit) -> None:
    vit.takes = False
    prepared = prepare(V0, V1, V0)
    assert [(medium.frame_count, medium.sent) for medium in prepared.media] == [(8, 8), (8, 8), (8, 0)]
    assert prepared.ticket == 0
    vit.takes = True
    prepare(V0, V1)
    assert np.array_equal(prepared.frames, np.concatenate([buffer.frames() for buffer in vit.given.values()]))


def test_a_lease_and_what_is_given_share_a_ticket(prepare: Any, vit: Vit) -> None:
    first = prepare(V0)
    vit.has = {first.media[0].key}
    prepared = prepare(V0, V1)
    assert prepared.ticket == 5
    assert list(vit.given) == [prepared.media[1].key]
    vit.takes = False
    prepared = prepare(V0, V1)
    assert (prepared.ticket, len(prepared.frames)) == (5, 8)
    assert [medium.sent for medium in prepared.media] == [0, 8]


def test_more_media_than_the_engine_takes_are_refused_before_one_is_fetched(prepare: Any) -> None:
    with pytest.raises(ServingError, match="72 frames together, the engine takes 64") as caught:
        prepare(*[V0.with_name("missing.mp4")] * 10, frames=8)
    assert caught.value.param == "messages.0.content.8.video_url.num_frames"


def test_a_refused_request_lets_go_of_what_is_held_for_it(prepare: Any, vit: Vit) -> None:
    vit.has = {prepare(V0).media[0].key}
    with pytest.raises(ServingError, match="exceed the engine's context"):
        prepare(V0, output_len=4095)
    assert vit.dropped == [5]
    prepare(V0)
    assert vit.dropped == [5]


def test_nothing_is_given_for_a_request_that_is_refused(prepare: Any, vit: Vit) -> None:
    with pytest.raises(ServingError, match="exceed the engine's context"):
        prepare(V0, output_len=4095)
    prepare()
    assert vit.tickets == []


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded_or_a_file_is_opened(prepare: Any) -> None:
    with pytest.raises(ServingError, match="the engine's context is 4096: shorten it") as caught:
        prepare(Path("/nowhere.mp4"), question="x y " * 1_000_000)
    assert caught.value.param == "messages"


def test_as_many_frames_as_the_engine_takes_and_not_one_group_more(prepare: Any) -> None:
    assert prepare(V0, V1, frames=32).prompt.rows == 64 * 16
    with pytest.raises(ServingError, match="72 frames together, the engine takes 64") as caught:
        prepare(V0, V1, frames=36)
    assert caught.value.param == "messages.0.content.1.video_url.num_frames"


def test_prompt_and_answer_fill_the_context_and_not_one_token_more(prepare: Any) -> None:
    left = CONTEXT - len(prepare().prompt.input_ids)
    assert prepare(output_len=left).max_new_tokens == prepare(output_len=-1).max_new_tokens == left
    with pytest.raises(ServingError, match=f"ask for at most {left}$") as caught:
        prepare(output_len=left + 1)
    assert caught.value.param == "max_tokens"


def test_a_prompt_leaves_room_for_one_token(prepare: Any) -> None:
    one, two = (len(prepare(question=text).prompt.input_ids) for text in ("\n", "\n\n"))
    assert two == one + 1
    longest = CONTEXT - 1 - (one - 1)
    assert prepare(output_len=-1, question=longest * "\n").max_new_tokens == 1
    with pytest.raises(ServingError, match=f"the prompt has {CONTEXT} tokens .* the engine's context is {CONTEXT}") as caught:
        prepare(output_len=-1, question=(longest + 1) * "\n")
    assert caught.value.param == "messages"


@pytest.mark.parametrize("output_len", [0, -2])
def test_no_tokens_to_generate_is_refused(prepare: Any, output_len: int) -> None:
    with pytest.raises(ServingError, match=f"must be 1 or more, got {output_len}"):
        prepare(output_len=output_len)


def test_words_are_written_as_the_engine_reads_them() -> None:
    assert word_list([[5], [6, 7], [8]]).tolist() == [[5, 6, 7, 8], [1, 3, 4, -1]]
