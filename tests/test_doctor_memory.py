"""The doctor's sum of GPU memory: what a deployment needs, held against what is free."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from build_scripts.checkpoint_sizes import DIMENSIONS, Size, model_config
from internvideo_server.context import Context
from internvideo_server.doctor import Status
from internvideo_server.doctor._host import check_gpu_memory
from internvideo_server.limits import EngineLimits
from internvideo_server.memory import ENGINE_ALLOWANCE, GIB, VISION_ALLOWANCE, deployment_of, kv_bytes_per_token
from internvideo_server.settings import ServeSettings


def real_need(tmp_path: Path, batch: int, quantized_cache: bool = False) -> Any:
    """The real model's need with an engine of 8.5 GiB."""
    config = model_config(DIMENSIONS[Size.FULL], "bfloat16")
    limits = EngineLimits("bfloat16", 92560, 4096, batch, 6144, 8192, 6144, batch * 2048)
    document = limits.to_document()
    if quantized_cache:
        document["pretrained_config"]["quantization"] = {"kv_cache_quant_algo": "FP8"}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with (tmp_path / "rank0.engine").open("wb") as file:
        file.truncate(int(8.5 * GIB))
    return deployment_of(config, tmp_path, limits, ServeSettings().cuda_region_count).need(Context(128, 8192))


def test_the_memory_need_is_computed_from_the_models_shape(tmp_path: Path) -> None:
    need = real_need(tmp_path, batch=2)
    assert kv_bytes_per_token(model_config(DIMENSIONS[Size.FULL], "bfloat16")["llm_config"], 1, 1, 2) == 128 << 10
    assert need.kv_cache == 2 * 8192 * (128 << 10) == 2 * GIB
    assert need.vision == (304_012_288 + 33_570_816) * 2 + VISION_ALLOWANCE
    assert need.prompt_tables == (8 + 16 + 2) * (16 << 20)  # regions, Triton's pool, the engine's own
    assert need.total == need.weights + need.kv_cache + need.prompt_tables + need.vision + ENGINE_ALLOWANCE
    assert real_need(tmp_path, batch=2, quantized_cache=True).kv_cache == GIB


@pytest.mark.parametrize(
    ("free_gib", "fraction", "status"),
    [
        (140, 0.8, Status.OK),
        (24, 0.8, Status.OK),
        (16, 0.8, Status.WARNING),
        (24, 0.95, Status.WARNING),
        (12, 0.8, Status.FAILED),
    ],
)
def test_free_memory_is_held_against_the_need(tmp_path: Path, free_gib: int, fraction: float, status: Status) -> None:
    described = SimpleNamespace(free=free_gib * GIB, total=free_gib * GIB)
    check = check_gpu_memory(cast(Any, described), real_need(tmp_path, batch=2), fraction)
    assert check.status is status
    assert bool(check.fix) == (status is not Status.OK)
