"""The whole vision path on a small checkpoint made here, against an independent float64 version of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import internvideo_server.vit.vision as vision
from internvideo_server.deadline import Deadline
from internvideo_server.errors import ServingError
from internvideo_server.vit.vision import VisionConfig, VisionModel
from internvideo_server.vit.vision.merging import average, choose, metric_of
from internvideo_server.vit.vision.tower import VisionTower, make_projector, pixel_shuffle
from tests.small_vision import make_tensors, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path)


@pytest.fixture
def model(checkpoint: Path) -> VisionModel:
    return VisionModel.from_checkpoint(checkpoint, "cpu", torch.float32)


def make_frames(count: int, seed: int = 0) -> Tensor:
    """Coarse coloured squares with fine noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 200, (count, 3, 16, 16), generator=generator).repeat_interleave(14, 2)
    noise = torch.randint(0, 56, (count, 3, 224, 224), generator=generator)
    return (coarse.repeat_interleave(14, 3) + noise).to(torch.uint8)


# The same path again, in float64 and with loops over frames, heads, patches and tokens.


def naive_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def naive_gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + torch.erf(torch.from_numpy(x) / 2**0.5).numpy())


def naive_tower(frame: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (frame / 255 - mean[:, None, None]) / std[:, None, None]
    rows = [w["embeddings.class_embedding"][0, 0]]
    for row in range(16):
        for column in range(16):
            patch = pixels[:, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
            product = (w["embeddings.patch_embedding.weight"] * patch).sum((1, 2, 3))
            rows.append(product + w["embeddings.patch_embedding.bias"])
    x = np.stack(rows) + w["embeddings.position_embedding"][0]
    for layer in range(2):
        part = {k.removeprefix(f"encoder.layers.{layer}."): v for k, v in w.items()}
        h = naive_norm(x, part["norm1.weight"], part["norm1.bias"], 1e-6)
        qkv = h @ part["attn.qkv.weight"].T + part["attn.qkv.bias"]
        heads = []
        for head in range(3):
            q, k, v = (qkv[:, 12 * i + 4 * head : 12 * i + 4 * head + 4] for i in range(3))
            scores = np.exp(q @ k.T / 4**0.5)
            heads.append(scores / scores.sum(1, keepdims=True) @ v)
        attention = np.concatenate(heads, 1) @ part["attn.proj.weight"].T + part["attn.proj.bias"]
        x = x + part["ls1"] * attention
        h = naive_norm(x, part["norm2.weight"], part["norm2.bias"], 1e-6)
        h = naive_gelu(h @ part["mlp.fc1.weight"].T + part["mlp.fc1.bias"])
        x = x + part["ls2"] * (h @ part["mlp.fc2.weight"].T + part["mlp.fc2.bias"])
    return x


def naive_shuffle(x: np.ndarray) -> np.ndarray:
    grid = x[1:].reshape(16, 16, 12)
    return np.stack(
        [
            np.concatenate([grid[2 * r, 2 * c], grid[2 * r, 2 * c + 1], grid[2 * r + 1, 2 * c], grid[2 * r + 1, 2 * c + 1]])
            for r in range(8)
            for c in range(8)
        ]
    )


def naive_merge(x: np.ndarray) -> tuple[np.ndarray, float]:
    sizes, least_gap = np.ones(len(x)), np.inf
    while len(x) > 64:
        metric = np.stack([np.mean([token[8 * h : 8 * h + 8] for h in range(6)], 0) for token in x])
        metric /= np.sqrt((metric**2).sum(1, keepdims=True))
        sums, weights = x[1::2] * sizes[1::2, None], sizes[1::2].copy()
        for even in range(0, len(x), 2):
            scores = np.array([metric[even] @ metric[odd] for odd in range(1, len(x), 2)])
            least_gap = min(least_gap, float(np.diff(np.sort(scores)[-2:])[0]))
            sums[scores.argmax()] += x[even] * sizes[even]
            weights[scores.argmax()] += sizes[even]
        x, sizes = sums / weights[:, None], weights
    return x, least_gap


def naive_embed(frames: Tensor, tensors: dict[str, Tensor]) -> tuple[np.ndarray, float]:
    w = {k.removeprefix("vision_model."): v.double().numpy() for k, v in tensors.items()}
    rows, least_gap = [], np.inf
    for first in range(0, len(frames), 4):
        group = [naive_shuffle(naive_tower(f.double().numpy(), w)) for f in frames[first : first + 4]]
        merged, gap = naive_merge(np.concatenate(group))
        h = naive_norm(merged, w["mlp1.0.weight"], w["mlp1.0.bias"], 1e-5)
        h = naive_gelu(h @ w["mlp1.1.weight"].T + w["mlp1.1.bias"])
        rows.append(h @ w["mlp1.3.weight"].T + w["mlp1.3.bias"])
        least_gap = min(least_gap, gap)
    return np.concatenate(rows), least_gap


def test_the_public_surface_is_small() -> None:
    names = {"Quantization", "VisionConfig", "VisionModel", "load_vision"}
    assert set(vision.__all__) == names


def test_the_real_sizes_give_the_published_numbers_of_parameters() -> None:
    config = VisionConfig(
        image_size=448,
        patch_size=14,
        hidden_size=1024,
        num_layers=24,
        num_heads=16,
        mlp_size=4096,
        layer_norm_eps=1e-6,
        merge_heads=32,
        llm_hidden_size=4096,
    )
    with torch.device("meta"):
        tower, projector = VisionTower(config), make_projector(config)
    assert sum(p.numel() for p in tower.parameters()) == 304_012_288
    assert sum(p.numel() for p in projector.parameters()) == 33_570_816


def test_embeddings_equal_an_independent_float64_version(model: VisionModel) -> None:
    frames = make_frames(12, seed=3)
    expected, gap = naive_embed(frames, make_tensors())
    assert gap > 1e-5, "pick another seed: float32 may choose otherwise than float64 here"
    rows = model.embed(frames)
    assert rows.shape == (12 * 16, 20)
    assert rows.dtype == torch.float32
    assert model.hidden_size == 20
    np.testing.assert_allclose(rows.numpy(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 0.999), (torch.float16, 0.99999)])
def test_half_precision_stays_close_to_float32(checkpoint: Path, dtype: torch.dtype, least: float) -> None:
    exact = VisionModel.from_checkpoint(checkpoint, "cpu", torch.float32)
    half = VisionModel.from_checkpoint(checkpoint, "cpu", dtype)
    with torch.inference_mode():
        ours, theirs = half.tokens(make_frames(8)), exact.tokens(make_frames(8))
        assert torch.cosine_similarity(ours, theirs, dim=2).min() > least
        x, y = (pixel_shuffle(tokens, 16).reshape(2, 256, 48) for tokens in (ours, theirs))
        choices = choose(metric_of(y, 6), 64)  # choices flip on rounding alone, so float32's are imposed
        x, y = average(x, choices, 64), average(y, choices, 64)
        projected, reference = half.projector(x.to(dtype)).float(), exact.projector(y)
    assert torch.cosine_similarity(x, y, dim=2).min() > least
    assert torch.cosine_similarity(projected, reference, dim=2).min() > least
    rows = half.embed(make_frames(8))
    assert rows.dtype == half.dtype == dtype
    assert bool(rows.isfinite().all())


def test_a_frame_group_gives_the_same_rows_in_a_longer_video(model: VisionModel) -> None:
    frames = make_frames(20)
    rows = model.embed(frames)
    assert torch.equal(model.embed(frames[:8]), rows[: 8 * 16])
    assert torch.equal(model.embed(frames[16:]), rows[16 * 16 :])


def test_a_group_gives_the_same_rows_whatever_stands_beside_it(model: VisionModel) -> None:
    groups = [make_frames(4, seed) for seed in range(3)]
    alone = [model.embed_chunk(group) for group in groups]
    size = model.chunk_frames // 4
    for order in ([0, 1, 2], [2, 0, 1]):
        for first in range(0, 3, size):
            taken = order[first : first + size]
            rows = model.embed_chunk(torch.cat([groups[i] for i in taken]))
            assert torch.equal(rows, torch.cat([alone[i] for i in taken]))


def test_a_chunk_is_written_where_it_is_wanted(model: VisionModel) -> None:
    frames, table = make_frames(4), torch.full((3 * 64, 20), 7.0)
    returned = model.embed_chunk(frames, table[64:128])
    assert returned.data_ptr() == table[64].data_ptr()
    assert torch.equal(table[64:128], model.embed_chunk(frames))
    assert bool((table[:64] == 7).all() and (table[128:] == 7).all())


def test_a_chunk_that_does_not_fit_is_refused(model: VisionModel) -> None:
    with pytest.raises(ValueError, match=f"at most {model.chunk_frames} frames, got {model.chunk_frames + 4}"):
        model.embed_chunk(make_frames(model.chunk_frames + 4))
    with pytest.raises(ValueError, match=r"out must be torch\.float32 \[64, 20\], got torch.float32 \[16, 20\]"):
        model.embed_chunk(make_frames(4), torch.empty(16, 20))
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        model.embed_chunk(make_frames(4), torch.empty(64, 20, dtype=torch.float64))


def test_threads_share_a_model_and_get_their_own_answers(model: VisionModel) -> None:
    videos = [make_frames(8, seed) for seed in range(4)]
    alone = [model.embed(video) for video in videos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model.embed, videos))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("level", [0, 255])
def test_frames_of_one_colour_give_finite_rows(model: VisionModel, level: int) -> None:
    assert bool(model.embed(torch.full((4, 3, 224, 224), level, dtype=torch.uint8)).isfinite().all())


def test_no_frames_give_no_rows(model: VisionModel) -> None:
    assert model.embed(make_frames(4)[:0]).shape == (0, 20)


def test_rows_can_be_handed_on_by_dlpack_and_changed(model: VisionModel) -> None:
    rows = model.embed(make_frames(4))
    shared = torch.from_dlpack(rows)
    assert shared.data_ptr() == rows.data_ptr()
    assert torch.equal(shared.clone().add_(1), rows + 1)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(4, 3, 224, 224), r"must be uint8 \[T, 3, 224, 224\], got torch.float32"),
        (torch.zeros(4, 3, 448, 448, dtype=torch.uint8), r"got torch.uint8 \[4, 3, 448, 448\]"),
        (torch.zeros(4, 224, 224, 3, dtype=torch.uint8), r"got torch.uint8 \[4, 224, 224, 3\]"),
        (torch.zeros(3, 224, 224, dtype=torch.uint8), r"got torch.uint8 \[3, 224, 224\]"),
        (torch.zeros(6, 3, 224, 224, dtype=torch.uint8), "multiple of 4, got 6"),
    ],
)
def test_wrong_frames_are_refused_with_their_shape(model: VisionModel, frames: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.embed(frames)


def cancelled_at(asked: int) -> tuple[Deadline, list[bool]]:
    answers: list[bool] = []

    def cancelled() -> bool:
        answers.append(len(answers) + 1 >= asked)
        return answers[-1]

    return Deadline(cancelled=cancelled), answers


@pytest.mark.parametrize("asked", [1, 2, 3, 4, 6])  # layers and merging of the first chunk, layers of the second
def test_work_ends_at_once_when_it_is_cancelled(model: VisionModel, asked: int) -> None:
    deadline, answers = cancelled_at(asked)
    with pytest.raises(ServingError, match="cancelled while running the vision tower"):
        model.embed(make_frames(8), deadline)
    assert len(answers) == asked


def test_looking_at_the_deadline_changes_nothing_else(model: VisionModel) -> None:
    deadline, answers = cancelled_at(10**9)
    assert torch.equal(model.embed(make_frames(8), deadline), model.embed(make_frames(8)))
    assert len(answers) == 2 * 3


def test_weights_do_not_hang_on_the_file(checkpoint: Path, model: VisionModel) -> None:
    before = model.embed(make_frames(4))
    with (checkpoint / "model.safetensors").open("r+b") as file:  # in place, as a careless copy over it does
        size = file.seek(0, 2)
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    assert torch.equal(model.embed(make_frames(4)), before)
