"""The engine's limits, and what follows from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ServingError
from internvideo_server.limits import EngineLimits, LimitsError
from internvideo_server.metrics import Meter
from internvideo_server.vit.table_buffers import RegionPool

LIMITS = EngineLimits("bfloat16", 1000, 64, 2, 4000, 4096, 4000, 2 * 128 * 16)


def test_the_limits_come_back_from_an_engine_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LIMITS.to_document()))
    assert EngineLimits.from_engine_dir(tmp_path) == LIMITS
    assert (LIMITS.max_rows, LIMITS.max_frames, LIMITS.table_bytes) == (2048, 128, 2048 * 64 * 2)


@pytest.mark.parametrize(("rows", "frames"), [(16 * 4, 4), (16 * 7, 4), (16 * 8, 8), (16, 0)])
def test_frames_are_taken_in_groups_of_four(rows: int, frames: int) -> None:
    assert replace(LIMITS, max_prompt_embedding_table_size=2 * rows).max_frames == frames


def test_an_engine_of_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(LimitsError, match="the engine is int8; known are float32, bfloat16, float16"):
        replace(LIMITS, dtype="int8")


def test_what_a_region_holds_is_told_in_a_number_that_may_be_asked_for() -> None:
    pool = RegionPool(1, 16 * 10 * 8, "test_", torch.device("cpu"), Meter())
    with pytest.raises(ServingError, match="ask for at most 8 frames"):
        pool.take(16 * 12, 8, Deadline())
