"""Embeddings by content: when the tower runs, and that an answer never depends on what a cache forgot."""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from internvideo_server.embeddings import Embedder, NamedFrames
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.metrics import Meter
from internvideo_server.vision import Stopped, VisionModel

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
ALL = 1 << 30


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> VisionModel:
    return VisionModel.from_checkpoint(checkpoint, "cpu", torch.float32)


def pictures(seed: int, count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, 3, 448, 448), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def never() -> bool:
    return False


NONE = torch.empty(0, 3, 448, 448, dtype=torch.uint8)


def embedder(model: VisionModel, size: int = ALL) -> tuple[Embedder, Meter]:
    meter = Meter()
    return Embedder(model, size, meter), meter


def lease(embeddings: Embedder, keys: list[bytes], ticket: int = 7, seconds: float = 3600.0) -> list[bool]:
    return embeddings.leases.grant(ticket, "request", keys, time.monotonic() + seconds)


def test_a_second_turn_runs_no_tower(model: VisionModel) -> None:
    embeddings, meter = embedder(model)
    first = embeddings.table(pictures(1), [NamedFrames(A, 4)], 0, never)
    assert lease(embeddings, [A]) == [True]
    second = embeddings.table(NONE, [NamedFrames(A, 0)], 7, never)
    assert torch.equal(first, second)
    assert torch.equal(first, model.embed(pictures(1)))
    assert meter.value("internvideo_vision_frames_total") == 4
    assert meter.value("internvideo_cache_hits_total", cache="embeddings") == 1


def test_media_of_a_conversation_are_found_one_by_one_and_stay_in_order(model: VisionModel) -> None:
    embeddings, meter = embedder(model)
    embeddings.table(pictures(1), [NamedFrames(A, 4)], 0, never)
    assert lease(embeddings, [A, B]) == [True, False]
    media = [NamedFrames(B, 4), NamedFrames(A, 0), NamedFrames(C, 8), NamedFrames(B, 0)]
    table = embeddings.table(torch.cat([pictures(2), pictures(3, 8)]), media, 7, never)
    expected = [model.embed(frames) for frames in (pictures(2), pictures(1), pictures(3, 8), pictures(2))]
    assert torch.equal(table, torch.cat(expected))
    assert meter.value("internvideo_vision_frames_total") == 4 + 4 + 8


def test_an_eviction_between_the_promise_and_the_request_changes_nothing(model: VisionModel) -> None:
    one = 4 * 16 * model.hidden_size * 4  # bytes of 4 frames' embeddings
    embeddings, meter = embedder(model, one)
    first = embeddings.table(pictures(1), [NamedFrames(A, 4)], 0, never)
    assert lease(embeddings, [A]) == [True]
    embeddings.table(pictures(2), [NamedFrames(B, 4)], 0, never)
    assert meter.value("internvideo_cache_evictions_total", cache="embeddings") == 1
    assert torch.equal(embeddings.table(NONE, [NamedFrames(A, 0)], 7, never), first)


def test_frames_that_come_a_second_time_are_not_embedded_again(model: VisionModel) -> None:
    embeddings, meter = embedder(model)
    first, second = (embeddings.table(pictures(1), [NamedFrames(A, 4)], 0, never) for _ in range(2))
    assert torch.equal(first, second)
    assert meter.value("internvideo_vision_frames_total") == 4


def test_a_cache_of_no_size_gives_the_same_answers(model: VisionModel) -> None:
    embeddings, meter = embedder(model, 0)
    tables = [embeddings.table(pictures(1), [NamedFrames(A, 4)], 0, never) for _ in range(2)]
    assert lease(embeddings, [A]) == [False]
    assert torch.equal(*tables)
    assert meter.value("internvideo_vision_frames_total") == 8


def test_a_request_that_comes_after_its_deadline_is_told_so(model: VisionModel) -> None:
    embeddings, _ = embedder(model)
    embeddings.table(pictures(1), [NamedFrames(A, 4)], 0, never)
    assert lease(embeddings, [A], seconds=0.0) == [True]
    lease(embeddings, [A], ticket=8)  # which finds the first one expired
    with pytest.raises(ServingError) as caught:
        embeddings.table(NONE, [NamedFrames(A, 0)], 7, never)
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED


def test_work_that_was_stopped_leaves_nothing_behind(model: VisionModel) -> None:
    embeddings, meter = embedder(model)
    with pytest.raises(Stopped):
        embeddings.table(pictures(1), [NamedFrames(A, 4)], 0, lambda: True)
    assert lease(embeddings, [A]) == [False]
    assert torch.equal(embeddings.table(pictures(1), [NamedFrames(A, 4)], 0, never), model.embed(pictures(1)))
    assert meter.value("internvideo_cache_bytes", cache="embeddings") == 4 * 16 * model.hidden_size * 4


def test_a_client_that_calls_the_model_alone_needs_no_names(model: VisionModel) -> None:
    embeddings, _ = embedder(model)
    assert torch.equal(embeddings.table(pictures(1), [], 0, never), model.embed(pictures(1)))
    empty = embeddings.table(NONE, [], 0, never)
    assert empty.shape == (1, model.hidden_size)
    assert not empty.any()
