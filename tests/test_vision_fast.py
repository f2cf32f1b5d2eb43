"""The fast vision path's rearrangements, on the CPU and without compiling: each is the plain path up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from build_scripts.make_checkpoint import make_checkpoint
from internvideo_server.checkpoint import Checkpoint
from internvideo_server.vision import Quantization, VisionConfig, VisionModel, _pointwise
from internvideo_server.vision._fast import FastVision
from internvideo_server.vision._folded import fold_embedding
from internvideo_server.vision._loading import load_vision
from internvideo_server.vision._plain import PlainVision
from internvideo_server.vision.tower import normalise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vision") / "tiny"
    make_checkpoint(path)
    return path


def both_paths(folder: Path, dtype: torch.dtype) -> tuple[PlainVision, FastVision]:
    checkpoint = Checkpoint.open(folder)
    config = VisionConfig.from_checkpoint(checkpoint)
    modules = load_vision(checkpoint, config, torch.device("cpu"), dtype)
    return PlainVision(config, *modules), FastVision(config, *modules, fp8=False, compiled=False)


def make_frames(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randint(0, 200, (count, 3, 32, 32), generator=generator).repeat_interleave(14, 2)
    noise = torch.randint(0, 56, (count, 3, 448, 448), generator=generator)
    return (coarse.repeat_interleave(14, 3) + noise).to(torch.uint8)


@torch.inference_mode()
def test_in_float32_it_is_the_plain_path(folder: Path) -> None:
    plain, fast = both_paths(folder, torch.float32)
    frames = make_frames(4)
    torch.testing.assert_close(fast.tokens(frames), plain.tokens(frames), atol=5e-5, rtol=0)
    rows = torch.empty(64, 64)
    plain.embed(frames, rows, lambda: None)
    cosine = torch.cosine_similarity(fast.rows(frames), rows, dim=1)
    assert (cosine > 0.9999).float().mean() > 0.9  # noise may turn an unclear choice


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 0.999), (torch.float16, 0.99999)])
def test_half_precision_stays_close_to_float32(folder: Path, dtype: torch.dtype, least: float) -> None:
    frames = make_frames(4)
    exact, ours = both_paths(folder, torch.float32)[0].tokens(frames), both_paths(folder, dtype)[1].tokens(frames)
    assert torch.cosine_similarity(ours, exact, dim=2).min() > least


@torch.inference_mode()
def test_no_large_sums_cancel_where_normalising_is_folded_in(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    config = VisionConfig.from_checkpoint(checkpoint)
    tower, _ = load_vision(checkpoint, config, torch.device("cpu"), torch.bfloat16)
    weight, offset = fold_embedding(tower)
    frames = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 448, 448)  # nearly the mean
    levels = _pointwise.cut_patches(frames, config.patch_size, weight.shape[1], torch.float32)
    ours = F.linear(levels, weight.float()) + offset[1:]
    expected = tower.float().embeddings(normalise(frames))[0, 1:]  # the same bfloat16 weights, not folded
    assert (ours - expected).abs().max() < 1e-3


def test_gelu_of_the_passes_is_that_of_erf() -> None:
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float32)
    expected = F.gelu(x.double())
    ours = torch.compile(_pointwise._gelu, fullgraph=True, backend="eager")(x)
    assert not torch.equal(ours, F.gelu(x)), "the compiled one is not the one that was tested"
    assert (ours - expected).abs().max() < 3e-6
    assert (F.gelu(x, approximate="tanh") - expected).abs().max() > 1e-4  # the test tells them apart


def test_rows_in_fp8_keep_their_size() -> None:
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(6)) * torch.logspace(-3, 3, 64)[:, None]
    for quantised, scale, exact in ((*_pointwise.to_fp8(x), x), (*_pointwise.gelu_fp8(x), F.gelu(x))):
        assert quantised.dtype == torch.float8_e4m3fn
        assert scale.shape == (64, 1)
        assert bool(quantised.float().isfinite().all())
        assert ((quantised.float() * scale - exact).abs() <= exact.abs() / 16 + scale / 512).all()


def test_fp8_is_refused_where_there_is_none(folder: Path) -> None:
    with pytest.raises(ValueError, match="float16 and bfloat16 on CUDA"):
        VisionModel.from_checkpoint(folder, "cpu", torch.bfloat16, Quantization.FP8)
