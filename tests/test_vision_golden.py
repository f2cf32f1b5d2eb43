"""The vision path against what the model's original code gave in float32 for real frames."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decord import VideoReader
from PIL import Image
from torch import Tensor

from internvideo_server.vit.vision import VisionModel
from internvideo_server.vit.vision.merging import average, choose, closest_odd, merge_metric, metric_of
from internvideo_server.vit.vision.tower import normalise, pixel_shuffle

TOLERANCE = 5e-5  # float32 noise of another order of summation
CLEAR = 1e-5  # where the best similarity leads by less, noise may choose otherwise
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = ["f8", "f16"]


@cache
def read_frames(video: Path, indices: tuple[int, ...]) -> Tensor:
    images = VideoReader(str(video)).get_batch(list(indices)).asnumpy()
    resized = [np.asarray(Image.fromarray(i).resize((448, 448), Image.Resampling.BICUBIC)) for i in images]
    return torch.from_numpy(np.stack(resized).transpose(0, 3, 1, 2).copy())


class Golden:
    """One case of the reference data."""

    def __init__(self, shared_dir: Path, case: str) -> None:
        self.model = shared_dir / "golden/tiny_s7/model"
        self._folder = shared_dir / "golden/tiny_s7" / case
        self.reference: dict[str, Any] = json.loads((self._folder / "reference.json").read_text())
        self.frames = read_frames(shared_dir / "data/red-panda.mp4", tuple(self.reference["video"]["frame_indices"]))

    def array(self, name: str) -> Tensor:
        return torch.from_numpy(np.load(self._folder / f"{name}.npy"))

    def choices(self) -> list[tuple[Tensor, Tensor]]:
        """Of each round the original's choices, and how clear they were."""
        return [(self.array(f"tome_node_idx_{i}"), self.array(f"tome_gap_{i}")) for i in range(4)]


@pytest.fixture(params=CASES)
def golden(shared_dir: Path, request: pytest.FixtureRequest) -> Golden:
    return Golden(shared_dir, request.param)


def groups_of(tokens: Tensor) -> Tensor:
    return pixel_shuffle(tokens, 32).reshape(-1, 1024, 256)


def test_pixel_values_are_the_originals_to_the_bit(golden: Golden) -> None:
    digest = hashlib.sha256(normalise(golden.frames).numpy().tobytes()).hexdigest()
    assert digest == golden.reference["pixel_values"]["sha256_f32"]


@pytest.mark.parametrize("device", DEVICES)
def test_tower_output_is_the_originals(shared_dir: Path, device: str) -> None:
    golden = Golden(shared_dir, "f8")
    model = VisionModel.from_checkpoint(golden.model, device, torch.float32)
    ours = model.tokens(golden.frames).cpu()
    torch.testing.assert_close(ours, golden.array("vit"), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_clear_merge_choices_and_merged_tokens_are_the_originals(golden: Golden, device: str) -> None:
    model = VisionModel.from_checkpoint(golden.model, device, torch.float32)
    tokens = groups_of(model.tokens(golden.frames))
    metric = metric_of(tokens, model.config.merge_heads)
    for theirs, gap in golden.choices():
        assert torch.equal(closest_odd(metric).cpu()[gap >= CLEAR], theirs[gap >= CLEAR])
        metric = merge_metric(metric, theirs.to(device))  # impose theirs: an unclear one must not spread
    x = average(tokens, [theirs.to(device) for theirs, _ in golden.choices()], 64)
    torch.testing.assert_close(x.cpu(), golden.array("merged"), atol=TOLERANCE, rtol=0)
    with torch.inference_mode():
        rows = model.projector(x).cpu()
    torch.testing.assert_close(rows.flatten(0, 1), golden.array("vision_embeddings").flatten(0, 1), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_embeddings_are_the_originals_in_groups_with_its_choices(golden: Golden, device: str) -> None:
    model = VisionModel.from_checkpoint(golden.model, device, torch.float32)
    rows = model.embed(golden.frames)
    assert torch.equal(model.embed(golden.frames), rows), "the same frames must give the same bits"

    metric = metric_of(groups_of(model.tokens(golden.frames)), model.config.merge_heads)
    ours = choose(metric, 64)
    equal = torch.stack([(a.cpu() == b).all(1) for a, (b, _) in zip(ours, golden.choices(), strict=True)]).all(0)
    assert bool(equal.any()), "no group to compare"
    ours_by_group, theirs_by_group = rows.cpu().view(-1, 64, rows.shape[1]), golden.array("vision_embeddings")
    theirs_by_group = theirs_by_group.view(ours_by_group.shape)
    torch.testing.assert_close(ours_by_group[equal], theirs_by_group[equal], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_stays_close_to_the_originals_float32(shared_dir: Path, device: str) -> None:
    golden = Golden(shared_dir, "f8")
    model = VisionModel.from_checkpoint(golden.model, device, torch.bfloat16)
    tokens = model.tokens(golden.frames)
    cosine = torch.cosine_similarity(tokens.cpu(), golden.array("vit"), dim=2)
    assert cosine.min() > 0.999

    x = average(groups_of(tokens), [theirs.to(device) for theirs, _ in golden.choices()], 64)
    assert torch.cosine_similarity(x.cpu(), golden.array("merged"), dim=2).min() > 0.999

    rows = model.embed(golden.frames)
    assert rows.dtype == torch.bfloat16
    assert bool(rows.isfinite().all())
