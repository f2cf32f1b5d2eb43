"""Embeddings by content: when the tower runs, and that an answer never depends on what a cache forgot."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.metrics import Meter
from internvideo_server.vit.embedder import Embedder, NamedFrames
from internvideo_server.vit.scheduler import ChunkModel
from internvideo_server.vit.table_buffers import RegionPool
from internvideo_server.vit.task import ChunkFailedError
from internvideo_server.vit.vision import VisionModel
from tests.asking import until
from tests.tower_lab import LabTower, in_thread

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
ALL = 1 << 30


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> VisionModel:
    return VisionModel.from_checkpoint(checkpoint, "cpu", torch.float32)


def pictures(seed: int, count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, 3, 448, 448), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


HAPPY = Deadline()
NONE = torch.empty(0, 3, 448, 448, dtype=torch.uint8)


Make = Callable[..., tuple[Embedder, Meter]]


@pytest.fixture
def embedder() -> Iterator[Make]:
    """Makes embedders, and ends them."""
    made = []

    def make(model: ChunkModel, size: int = ALL, regions: int = 2, region_frames: int = 128) -> tuple[Embedder, Meter]:
        meter = Meter()
        row = model.hidden_size * model.dtype.itemsize
        pool = RegionPool(regions, region_frames * 16 * row, "test_", model.device, meter)
        made.append(Embedder(model, pool, size, meter))
        return made[-1], meter

    yield make
    for each in made:
        each.close()


def rows(
    embeddings: Embedder, frames: Tensor, media: list[NamedFrames], reservation: int = 0, deadline: Deadline = HAPPY
) -> Tensor:
    """A copy of the table, which is released."""
    table = embeddings.table(frames, media, reservation, deadline)
    copy = table.rows.clone()
    table.release()
    return copy


def hold(embeddings: Embedder, keys: list[bytes], reservation: int = 7, seconds: float = 3600.0) -> list[bool]:
    held = embeddings.reservations.hold_embeddings(reservation, "request", time.monotonic() + seconds, keys)
    return [key in held for key in keys]


def test_a_second_turn_runs_no_tower(model: VisionModel, embedder: Make) -> None:
    embeddings, meter = embedder(model)
    first = rows(embeddings, pictures(1), [NamedFrames(A, 4)], 0)
    assert hold(embeddings, [A]) == [True]
    second = rows(embeddings, NONE, [NamedFrames(A, 0)], 7)
    assert torch.equal(first, second)
    assert torch.equal(first, model.embed(pictures(1)))
    assert meter.value("internvideo_vision_frames_total") == 4
    assert meter.value("internvideo_cache_hits_total", cache="embeddings") == 1


def test_media_of_a_conversation_are_found_one_by_one_and_stay_in_order(model: VisionModel, embedder: Make) -> None:
    embeddings, meter = embedder(model)
    rows(embeddings, pictures(1), [NamedFrames(A, 4)], 0)
    assert hold(embeddings, [A, B]) == [True, False]
    media = [NamedFrames(B, 4), NamedFrames(A, 0), NamedFrames(C, 8), NamedFrames(B, 0)]
    table = rows(embeddings, torch.cat([pictures(2), pictures(3, 8)]), media, 7)
    expected = [model.embed(frames) for frames in (pictures(2), pictures(1), pictures(3, 8), pictures(2))]
    assert torch.equal(table, torch.cat(expected))
    assert meter.value("internvideo_vision_frames_total") == 4 + 4 + 8


def test_an_eviction_between_the_promise_and_the_request_changes_nothing(model: VisionModel, embedder: Make) -> None:
    one = 4 * 16 * model.hidden_size * 4  # bytes of 4 frames' embeddings
    embeddings, meter = embedder(model, one)
    first = rows(embeddings, pictures(1), [NamedFrames(A, 4)], 0)
    assert hold(embeddings, [A]) == [True]
    rows(embeddings, pictures(2), [NamedFrames(B, 4)], 0)
    assert meter.value("internvideo_cache_evictions_total", cache="embeddings") == 1
    assert torch.equal(rows(embeddings, NONE, [NamedFrames(A, 0)], 7), first)


def test_frames_that_come_a_second_time_are_not_embedded_again(model: VisionModel, embedder: Make) -> None:
    embeddings, meter = embedder(model)
    first, second = (rows(embeddings, pictures(1), [NamedFrames(A, 4)], 0) for _ in range(2))
    assert torch.equal(first, second)
    assert meter.value("internvideo_vision_frames_total") == 4


def test_a_cache_of_no_size_gives_the_same_answers(model: VisionModel, embedder: Make) -> None:
    embeddings, meter = embedder(model, 0)
    tables = [rows(embeddings, pictures(1), [NamedFrames(A, 4)], 0) for _ in range(2)]
    assert hold(embeddings, [A]) == [False]
    assert torch.equal(*tables)
    assert meter.value("internvideo_vision_frames_total") == 8


def test_a_request_that_comes_after_its_deadline_is_told_so(model: VisionModel, embedder: Make) -> None:
    embeddings, _ = embedder(model)
    rows(embeddings, pictures(1), [NamedFrames(A, 4)], 0)
    assert hold(embeddings, [A], seconds=0.0) == [True]
    hold(embeddings, [A], reservation=8)  # which finds the first one expired
    with pytest.raises(ServingError) as caught:
        rows(embeddings, NONE, [NamedFrames(A, 0)], 7)
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED


def test_work_that_was_stopped_leaves_nothing_behind(model: VisionModel, embedder: Make) -> None:
    embeddings, meter = embedder(model)
    gone = threading.Event()
    gone.set()
    with pytest.raises(ServingError, match="cancelled"):
        rows(embeddings, pictures(1), [NamedFrames(A, 4)], deadline=Deadline(cancelled=gone.is_set))
    assert hold(embeddings, [A]) == [False]
    assert torch.equal(rows(embeddings, pictures(1), [NamedFrames(A, 4)], 0), model.embed(pictures(1)))
    assert meter.value("internvideo_cache_bytes", cache="embeddings") == 4 * 16 * model.hidden_size * 4


def test_a_client_that_calls_the_model_alone_needs_no_names(model: VisionModel, embedder: Make) -> None:
    embeddings, _ = embedder(model)
    assert torch.equal(rows(embeddings, pictures(1), [], 0), model.embed(pictures(1)))
    empty = rows(embeddings, NONE, [], 0)
    assert empty.shape == (1, model.hidden_size)
    assert not empty.any()


# ---- several requests


def lab_frames(number: int, count: int = 4) -> Tensor:
    return torch.full((count, 3, 448, 448), number, dtype=torch.uint8)


def given(number: int, count: int = 4) -> FrameBuffer:
    """Frames as `preprocessing` leaves them."""
    buffer = FrameBuffer()
    written = 0
    content = memoryview(lab_frames(number, count).numpy().reshape(-1))
    while written < len(content):
        written += os.pwrite(buffer.fd, content[written:], written)
    buffer.frame_count = count
    return buffer


def give(embeddings: Embedder, reservation: int, frames: dict[bytes, FrameBuffer]) -> bool:
    return embeddings.reservations.hold_frames(reservation, "request", time.monotonic() + 3600, frames)


def test_frames_that_were_left_are_taken_from_where_they_lie(embedder: Make) -> None:
    embeddings, meter = embedder(LabTower())
    assert give(embeddings, 7, {A: given(1, 8), B: given(2)})
    table = rows(embeddings, NONE, [NamedFrames(B, 0), NamedFrames(A, 0), NamedFrames(B, 0)], 7)
    assert table[:, 0].tolist() == [2.0] * 64 + [1.0] * 128 + [2.0] * 64
    assert meter.value("internvideo_vision_frames_total") == 12
    assert len(embeddings.reservations) == 0


def test_what_was_left_for_a_request_goes_when_it_is_stopped_or_refused(embedder: Make) -> None:
    embeddings, _ = embedder(LabTower())
    assert give(embeddings, 7, {A: given(1)})
    embeddings.reservations.cancel("request")
    assert give(embeddings, 8, {A: given(1)})
    embeddings.reservations.claim(8)
    for reservation in (7, 8):
        with pytest.raises(ServingError) as caught:
            rows(embeddings, NONE, [NamedFrames(A, 0)], reservation)
        assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED


def test_a_frame_buffer_whose_memory_is_too_short_fails_its_request_alone(embedder: Make) -> None:
    embeddings, _ = embedder(LabTower())
    short = given(1)
    short.frame_count = 8
    give(embeddings, 7, {A: short})
    with pytest.raises(ChunkFailedError, match="frame 4 is not in the buffer"):
        rows(embeddings, NONE, [NamedFrames(A, 0)], 7)
    assert rows(embeddings, lab_frames(2), [NamedFrames(B, 4)])[0, 0] == 2


def test_two_requests_for_the_same_new_video_run_the_tower_once(embedder: Make) -> None:
    tower = LabTower(gated=True)
    embeddings, meter = embedder(tower)
    first = in_thread(lambda: rows(embeddings, lab_frames(1), [NamedFrames(A, 4)]))
    tower.wait_for_chunk()
    second = in_thread(lambda: rows(embeddings, lab_frames(1), [NamedFrames(A, 4)]))
    until(lambda: len(embeddings._flights._flights[A].waiters) == 2, "the second did not join")
    tower.run()
    assert torch.equal(first.result(), second.result())
    assert tower.chunks == [[1] * 4]
    assert meter.value("internvideo_cache_hits_total", cache="embeddings") == 1
    assert meter.value("internvideo_cache_misses_total", cache="embeddings", kind="new") == 1


@pytest.mark.parametrize("who", ["first", "second"])
def test_who_leaves_does_not_take_the_result_from_the_other(embedder: Make, who: str) -> None:
    tower = LabTower(gated=True)
    embeddings, _ = embedder(tower)
    gone, stays = Deadline(), Deadline()
    deadlines = [gone, stays] if who == "first" else [stays, gone]
    first = in_thread(lambda: rows(embeddings, lab_frames(1, 32), [NamedFrames(A, 32)], deadline=deadlines[0]))
    tower.wait_for_chunk()
    second = in_thread(lambda: rows(embeddings, lab_frames(1, 32), [NamedFrames(A, 32)], deadline=deadlines[1]))
    until(lambda: len(embeddings._flights._flights[A].waiters) == 2, "the second did not join")
    gone.cancel()
    if who == "second":
        with pytest.raises(ServingError):
            second.result()
    tower.run()
    assert (second if who == "first" else first).result()[:, 0].tolist() == [1.0] * 512


def test_work_that_all_have_left_ends_and_the_next_request_does_it_anew(embedder: Make) -> None:
    tower = LabTower(gated=True)
    embeddings, _ = embedder(tower)
    gone = threading.Event()
    first = in_thread(lambda: rows(embeddings, lab_frames(1, 32), [NamedFrames(A, 32)], deadline=Deadline(cancelled=gone.is_set)))
    tower.wait_for_chunk()
    gone.set()
    tower.run()
    with pytest.raises(ServingError, match="cancelled while waiting for the vision tower"):
        first.result()
    assert len(tower.chunks) == 1  # of two
    assert rows(embeddings, lab_frames(1), [NamedFrames(A, 4)])[0, 0] == 1


def test_a_requests_media_share_chunks(embedder: Make) -> None:
    tower = LabTower()
    embeddings, _ = embedder(tower)
    tower.hold()
    blocker = in_thread(lambda: rows(embeddings, lab_frames(9), []))
    tower.wait_for_chunk()
    media = [NamedFrames(A, 4), NamedFrames(B, 8)]
    asked = in_thread(lambda: rows(embeddings, torch.cat([lab_frames(1), lab_frames(2, 8)]), media))
    until(lambda: len(embeddings._tower._turn) == 2, "they did not come")
    tower.run()
    blocker.result()
    assert asked.result()[:, 0].tolist() == [1.0] * 64 + [2.0] * 128
    assert tower.chunks == [[9] * 4, [1] * 4 + [2] * 8]


# ---- regions


def test_rows_are_made_in_the_region_itself(embedder: Make) -> None:
    embeddings, meter = embedder(LabTower(), regions=1)
    table = embeddings.table(lab_frames(1, 8), [NamedFrames(A, 8)], 0, HAPPY)
    region = embeddings._regions._free
    assert region == []
    assert meter.value("internvideo_regions_in_use") == 1
    table.release()
    assert table.rows.data_ptr() == embeddings._regions._free[0]._memory.data_ptr()
    assert meter.value("internvideo_regions_in_use") == 0


def test_what_the_cache_holds_is_handed_over_in_place_and_takes_no_region(embedder: Make) -> None:
    embeddings, meter = embedder(LabTower(), regions=1)
    held = embeddings.table(lab_frames(1), [NamedFrames(A, 4)], 0, HAPPY)  # the only region
    again = embeddings.table(lab_frames(1), [NamedFrames(A, 4)], 0, HAPPY)
    kept = embeddings._cache.get(A)
    assert kept is not None
    assert again.rows.data_ptr() == kept.data_ptr() != held.rows.data_ptr()
    assert meter.value("internvideo_regions_in_use") == 1


def test_a_region_is_overwritten_only_after_its_release(embedder: Make) -> None:
    embeddings, _ = embedder(LabTower(), regions=2)
    first = embeddings.table(lab_frames(1), [], 0, HAPPY)
    second = embeddings.table(lab_frames(2), [], 0, HAPPY)
    assert (first.rows[0, 0], second.rows[0, 0]) == (1, 2)
    first.release()
    third = embeddings.table(lab_frames(3), [], 0, HAPPY)
    assert (second.rows[0, 0], third.rows[0, 0]) == (2, 3)


def test_a_request_waits_for_a_region_until_one_is_free(embedder: Make) -> None:
    embeddings, _ = embedder(LabTower(), regions=1)
    first = embeddings.table(lab_frames(1), [], 0, HAPPY)
    second = in_thread(lambda: rows(embeddings, lab_frames(2), []))
    assert not second.done()
    first.release()
    assert second.result()[0, 0] == 2


def test_no_region_until_the_deadline_is_unavailable(embedder: Make) -> None:
    embeddings, _ = embedder(LabTower(), regions=1)
    embeddings.table(lab_frames(1), [], 0, HAPPY)
    with pytest.raises(ServingError, match=r"all 1 regions \(test_\*\)") as caught:
        embeddings.table(lab_frames(2), [], 0, Deadline.after(0.01))
    assert caught.value.code is ErrorCode.UNAVAILABLE


def test_a_table_that_no_region_holds_is_refused_with_the_numbers(embedder: Make) -> None:
    embeddings, _ = embedder(LabTower(), regions=1, region_frames=8)
    with pytest.raises(ServingError, match="at most 8 frames") as caught:
        embeddings.table(lab_frames(1, 12), [], 0, HAPPY)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert rows(embeddings, lab_frames(1, 8), [])[0, 0] == 1


def test_a_failed_request_gives_its_region_back(embedder: Make) -> None:
    tower = LabTower()
    embeddings, meter = embedder(tower, regions=1)
    tower.poison = 5
    for _ in range(3):
        with pytest.raises(ChunkFailedError, match="poisoned"):
            rows(embeddings, lab_frames(5), [NamedFrames(A, 4)])
    assert meter.value("internvideo_regions_in_use") == 0
    tower.poison = None
    assert rows(embeddings, lab_frames(5), [NamedFrames(A, 4)])[0, 0] == 5


@pytest.mark.parametrize("count", [1, 6])
def test_frames_that_make_no_whole_groups_are_refused(embedder: Make, count: int) -> None:
    embeddings, _ = embedder(LabTower())
    with pytest.raises(ServingError, match="multiple of 4"):
        embeddings.table(lab_frames(1, count), [], 0, HAPPY)


def test_counts_that_do_not_fit_the_frames_are_refused(embedder: Make) -> None:
    embeddings, _ = embedder(LabTower())
    with pytest.raises(ServingError, match="frame_counts say 8 frames, 4 came"):
        embeddings.table(lab_frames(1), [NamedFrames(A, 8)], 0, HAPPY)
