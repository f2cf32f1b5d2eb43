"""Frames to the GPU and embeddings out of it: what crosses to the host, where the rows lie, and many requests at a time."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from internvideo_server.deadline import Deadline
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.metrics import Meter
from internvideo_server.vit.embedder import Embedder, NamedFrames
from internvideo_server.vit.table_buffers import RegionPool
from internvideo_server.vit.vision import VisionModel

pytestmark = pytest.mark.gpu

NONE = torch.empty(0, 3, 448, 448, dtype=torch.uint8)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> VisionModel:
    return VisionModel.from_checkpoint(checkpoint, "cuda", torch.bfloat16)


@pytest.fixture
def embedder(model: VisionModel) -> Iterator[Callable[..., Embedder]]:
    made = []

    def make(cache: int = 1 << 30, regions: int = 8) -> Embedder:
        row = model.hidden_size * model.dtype.itemsize
        meter = Meter()
        made.append(Embedder(model, RegionPool(regions, 256 * 16 * row, "test_", model.device, meter), cache, meter))
        return made[-1]

    yield make
    for each in made:
        each.close()


def pictures(seed: int, count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 448, 448), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def left(embeddings: Embedder, reservation: int, frames: dict[bytes, Tensor]) -> None:
    """Frames as `preprocessing` leaves them."""
    buffers = {}
    for key, tensor in frames.items():
        buffers[key] = FrameBuffer()
        content, written = memoryview(tensor.numpy().reshape(-1)), 0
        while written < len(content):
            written += os.pwrite(buffers[key].fd, content[written:], written)
        buffers[key].frame_count = len(tensor)
    assert embeddings.reservations.hold_frames(reservation, "", time.monotonic() + 3600, buffers)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def copies(work: Callable[[], Any], path: Path, kind: str = "DtoH") -> list[int]:
    """Bytes of each copy of a kind while something ran."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        work()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(path))
    events = json.loads(path.read_bytes().decode(errors="replace"), strict=False)["traceEvents"]
    return [event["args"]["bytes"] for event in events if event.get("name", "").startswith(f"Memcpy {kind}")]


@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's own, which differ from release to release
def test_embeddings_never_touch_host_memory(model: VisionModel, embedder: Callable[..., Embedder], tmp_path: Path) -> None:
    embeddings = embedder()
    contents = [pictures(number, 80) for number in range(2)]
    size = 80 * 16 * model.hidden_size * 2

    def work(turn: int) -> None:
        names = [key(2 * turn), key(2 * turn + 1)]
        for reservation, wanted in enumerate(([0], [0, 1], [1]), start=1):  # new; known and new together; known alone
            left(embeddings, reservation, {names[number]: contents[number] for number in wanted})
            table = embeddings.table(NONE, [NamedFrames(names[number], 0) for number in wanted], reservation, Deadline())
            assert table.rows.is_cuda
            assert torch.from_dlpack(torch.to_dlpack(table.rows.unsqueeze(0))).data_ptr() == table.rows.data_ptr()
            table.release()

    work(0)  # warm
    assert sum(copies(lambda: work(1), tmp_path / "up.json", "HtoD")) >= 160 * 3 * 448 * 448, "the profiler sees no copies"
    known = embeddings._cache.get(key(0))
    assert known is not None
    assert size in copies(lambda: known.cpu(), tmp_path / "control.json"), "the profiler sees no copies to the host"
    down = copies(lambda: work(2), tmp_path / "down.json")
    assert max(down, default=0) < size / 16
    assert sum(down) < size / 4


def test_frames_from_everywhere_give_the_same_rows(model: VisionModel, embedder: Callable[..., Embedder]) -> None:
    embeddings = embedder(cache=0)
    frames = pictures(1, 24)
    expected = model.embed(frames)
    left(embeddings, 1, {key(1): frames})
    for source, media, reservation in (
        (frames, [], 0),
        (frames.cuda(), [], 0),
        (NONE, [NamedFrames(key(1), 0)], 1),
    ):
        table = embeddings.table(source, media, reservation, Deadline())
        assert torch.equal(table.rows, expected)
        table.release()


def test_many_requests_at_a_time_get_their_own_rows_and_memory_stays(
    model: VisionModel, embedder: Callable[..., Embedder]
) -> None:
    embeddings = embedder(cache=1 << 22, regions=4)  # evictions all the time
    videos = {number: pictures(number, 4 * (1 + number % 5)) for number in range(12)}
    expected = {number: model.embed(frames) for number, frames in videos.items()}

    def ask(turn: int) -> None:
        names = random.Random(turn).sample(range(12), 1 + turn % 3)
        source = torch.cat([videos[number] for number in names])
        if turn % 4 == 3:
            table = embeddings.table(source.cuda(), [NamedFrames(key(n), len(videos[n])) for n in names], 0, Deadline())
        else:
            left(embeddings, turn + 1, {key(number): videos[number] for number in names})
            table = embeddings.table(NONE, [NamedFrames(key(number), 0) for number in names], turn + 1, Deadline())
        try:
            assert torch.equal(table.rows, torch.cat([expected[number] for number in names]))
        finally:
            table.release()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(100)))
        torch.cuda.synchronize()
        before = torch.cuda.memory_reserved()
        list(pool.map(ask, range(100, 500)))
    assert torch.cuda.memory_reserved() <= before + (64 << 20)
