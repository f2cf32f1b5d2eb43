"""The fast vision path's rearrangements, on the CPU and without compiling: each is the plain path up to rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from build_scripts.make_checkpoint import make_checkpoint
from internvideo_server.checkpoint import Checkpoint
from internvideo_server.deadline import Deadline
from internvideo_server.vit.vision import Quantization, VisionConfig, VisionModel, _pointwise
from internvideo_server.vit.vision._fast import FastVision
from internvideo_server.vit.vision._fused_weights import fuse_embedding
from internvideo_server.vit.vision._loading import load_vision
from internvideo_server.vit.vision._plain import PlainVision
from internvideo_server.vit.vision.tower import normalise


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
    plain.embed(frames, rows, Deadline())
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
    weight, offset = fuse_embedding(tower)
    frames = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 448, 448)  # nearly the mean
    levels = _pointwise.cut_patches(frames, config.patch_size, weight.shape[1], torch.float32)
    ours = F.linear(levels, weight.float()) + offset[1:]
    expected = tower.float().embeddings(normalise(frames))[0, 1:]  # the same bfloat16 weights, not folded
    assert (ours - expected).abs().max() < 1e-3


ATTENTION = """
import torch
from internvideo_server.vit.vision import _kernels
torch.manual_seed(5)
for frames, tokens, heads, size in ((2, 257, 3, 32), (1, 65, 2, 64), (3, 129, 1, 16)):
    assert _kernels.attends(tokens, size)
    qkv = torch.randn(frames * tokens, 3 * heads * size)
    qkv[::tokens] *= 3  # class tokens that count
    q, k, v = qkv.view(frames, tokens, 3, heads, size).permute(2, 0, 3, 1, 4)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(qkv), -1)
    torch.testing.assert_close(_kernels.attention(qkv, frames, heads), wanted, atol=1e-5, rtol=0)
"""


def test_attention_that_starts_with_the_class_token_is_attention() -> None:
    pytest.importorskip("triton", reason="torch for CPUs alone comes without it")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # read when kernels are defined: a process of its own
    done = subprocess.run([sys.executable, "-c", ATTENTION], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_attention_takes_sizes_that_fill_its_tiles() -> None:
    kernels = pytest.importorskip("internvideo_server.vit.vision._kernels", reason="no Triton", exc_type=ImportError)
    assert kernels.attends(1025, 64)
    assert not any(kernels.attends(*sizes) for sizes in ((1024, 64), (1, 64), (1025, 4), (1025, 80), (33, 64)))


def test_rows_in_fp8_keep_their_size() -> None:
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(6)) * torch.logspace(-3, 3, 64)[:, None]
    for quantised, scale, exact in ((*_pointwise.to_fp8(x), x), (*_pointwise.gelu_fp8(x), F.gelu(x, approximate="tanh"))):
        assert quantised.dtype == torch.float8_e4m3fn
        assert scale.shape == (64, 1)
        assert bool(quantised.float().isfinite().all())
        assert ((quantised.float() * scale - exact).abs() <= exact.abs() / 16 + scale / 512).all()


def test_fp8_is_refused_where_there_is_none(folder: Path) -> None:
    with pytest.raises(ValueError, match="float16 and bfloat16 on CUDA"):
        VisionModel.from_checkpoint(folder, "cpu", torch.bfloat16, Quantization.FP8)
