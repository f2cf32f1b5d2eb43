"""Requests share the tower's chunks: who is done when, and what one's end does to the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ServingError
from internvideo_server.vit.scheduler import TowerQueue
from internvideo_server.vit.task import ChunkFailedError, Task
from tests.asking import until
from tests.tower_lab import PATIENCE_S, LabTower


class Lab:
    """A queue on a held tower, and the order in which its tasks end."""

    def __init__(self) -> None:
        self.tower = LabTower(gated=True)
        self.queue = TowerQueue(self.tower)
        self.ended: list[int] = []
        self.unwanted: set[int] = set()
        self.outs: dict[int, Tensor] = {}

    def submit(self, number: int, count: int, *, keep: bool = False) -> Task:
        frames = torch.full((count, 3, 448, 448), number, dtype=torch.uint8)
        self.outs[number] = torch.zeros(16 * count, self.tower.hidden_size)
        return self.queue.submit(
            frames,
            self.outs[number],
            Deadline(cancelled=lambda: number in self.unwanted),
            keep=keep,
            on_done=lambda _: self.ended.append(number),
        )

    def right(self, number: int) -> bool:
        return bool((self.outs[number] == number).all())


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.tower.run()
    lab.queue.close()


def test_a_short_video_is_done_long_before_the_long_one(lab: Lab) -> None:
    long = lab.submit(1, 512)
    lab.tower.wait_for_chunk()
    short = lab.submit(2, 8)
    lab.tower.run()
    short.result()
    long.result()
    assert lab.ended == [2, 1]
    assert lab.tower.chunks[1] == [1] * 8 + [2] * 8
    assert len(lab.tower.chunks) == 33
    assert lab.right(1)
    assert lab.right(2)


def test_groups_are_taken_in_turn_and_chunks_are_full(lab: Lab) -> None:
    blocker = lab.submit(9, 4)
    lab.tower.wait_for_chunk()
    tasks = [lab.submit(number, count) for number, count in ((1, 24), (2, 4), (3, 12))]
    lab.tower.run()
    for task in (blocker, *tasks):
        task.result()
    assert lab.tower.chunks == [
        [9] * 4,
        [1] * 8 + [2] * 4 + [3] * 4,
        [3] * 8 + [1] * 8,
        [1] * 8,
    ]
    assert lab.ended == [9, 2, 3, 1]
    assert all(lab.right(number) for number in (1, 2, 3))


def test_a_stop_leaves_the_others(lab: Lab) -> None:
    stopped, other = lab.submit(1, 64), lab.submit(2, 16)
    lab.tower.wait_for_chunk()
    lab.unwanted.add(1)
    lab.tower.run()
    other.result()
    with pytest.raises(ServingError, match="nobody waits"):
        stopped.result()
    assert lab.right(2)
    assert sum(chunk.count(1) for chunk in lab.tower.chunks) <= 16


def test_a_task_ends_only_when_no_chunk_writes_for_it(lab: Lab) -> None:
    task = lab.submit(1, 32)
    lab.tower.wait_for_chunk()
    lab.unwanted.add(1)
    assert not task.done.is_set()
    lab.tower.run()
    with pytest.raises(ServingError, match="nobody waits"):
        task.result()


def test_a_failed_chunk_fails_those_in_it_alone(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    blocker = lab.submit(9, 4)
    lab.tower.wait_for_chunk()
    lab.tower.poison = 1
    failing, beside, later = lab.submit(1, 64), lab.submit(2, 4), lab.submit(3, 4)
    lab.tower.chunk_frames = 8
    lab.tower.run()
    for task in (failing, beside):
        with pytest.raises(ChunkFailedError, match="ValueError: poisoned"):
            task.result()
    blocker.result()
    later.result()
    assert lab.right(3)
    assert sum(chunk.count(1) for chunk in lab.tower.chunks) == 4
    assert "a chunk of 8 frames failed" in caplog.text


def test_a_device_that_fails_after_a_chunk_was_queued_fails_its_requests_and_no_later_ones(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(slot: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("internvideo_server.vit.scheduler._Slot.mark", broken)
    failing = lab.submit(1, 4)
    lab.tower.run()
    assert failing.done.wait(PATIENCE_S)
    with pytest.raises(ChunkFailedError, match="illegal memory access"):
        failing.result()
    lab.submit(2, 4).result()
    assert lab.right(2)


def test_kept_rows_are_a_copy(lab: Lab) -> None:
    task = lab.submit(1, 20, keep=True)
    lab.tower.run()
    kept = task.result()
    assert kept is not None
    lab.outs[1].zero_()
    assert (kept == 1).all()


def test_frames_are_let_go_before_the_end_is_told(lab: Lab) -> None:
    task = lab.submit(1, 8)
    lab.tower.run()
    task.result()
    assert task.frames is None


def test_closing_stops_what_is_not_finished(lab: Lab) -> None:
    task = lab.submit(1, 64)
    lab.tower.wait_for_chunk()
    lab.queue._closing = True
    lab.tower.run()
    lab.queue.close()
    with pytest.raises(ServingError, match="nobody waits"):
        task.result()
    with pytest.raises(ServingError, match="shutting down"):
        lab.submit(2, 4)
    until(lambda: not lab.queue._thread.is_alive(), "the thread goes on")


def test_each_task_knows_its_share_of_the_work(lab: Lab) -> None:
    tasks = [lab.submit(1, 24), lab.submit(2, 4)]
    lab.tower.run()
    for task in tasks:
        task.result()
    assert [task.embedded for task in tasks] == [24, 4]
    assert all(task.seconds > 0 for task in tasks)
