"""The vision path at full size on CUDA: chunks, streams, threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.random_vision import moving_frames, random_parts
from benchmarks.vision_accuracy import accuracy
from internvideo_server.deadline import Deadline
from internvideo_server.errors import ServingError
from internvideo_server.vit.vision import Quantization, VisionModel

_kernels = pytest.importorskip("internvideo_server.vit.vision._kernels", reason="no Triton", exc_type=ImportError)
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def model() -> Iterator[VisionModel]:
    yield VisionModel(*random_parts("cuda", torch.bfloat16))
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def exact() -> VisionModel:
    return VisionModel(*random_parts("cuda", torch.float32))


def test_attention_is_as_close_to_float32_as_torchs_own() -> None:
    frames, tokens, heads, size = 6, 1025, 16, 64
    assert _kernels.attends(tokens, size)
    qkv = torch.randn(frames * tokens, 3 * heads * size, device="cuda", dtype=torch.bfloat16)
    q, k, v = qkv.view(frames, tokens, 3, heads, size).permute(2, 0, 3, 1, 4)
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        theirs = F.scaled_dot_product_attention(q, k, v)
    ours = _kernels.attention(qkv, frames, heads).view(frames, tokens, heads, size).transpose(1, 2)
    for part in (slice(0, 1), slice(1, None)):  # the class token, the patches
        off, allowed = ((each[:, :, part] - exact[:, :, part]).norm() for each in (ours, theirs))
        assert off < 1.2 * allowed


def test_gelu_in_fp8_is_gelu() -> None:
    x = torch.randn(512, 4096, device="cuda", dtype=torch.bfloat16) * torch.logspace(-2, 2, 512, device="cuda")[:, None]
    x = x.to(torch.bfloat16)
    quantised, scale = _kernels.gelu_fp8(x)
    exact = F.gelu(x.float(), approximate="tanh")
    assert ((quantised.float() * scale - exact).abs() <= exact.abs() / 15.9 + scale / 512).all()


def test_a_group_gives_the_same_rows_wherever_it_stands_and_whatever_is_beside_it(model: VisionModel) -> None:
    groups = [moving_frames(4, seed).cuda() for seed in range(2 * model.chunk_frames // 4)]
    alone = [model.embed_chunk(group) for group in groups]
    for shift in range(len(groups)):
        order = [(place + shift) % len(groups) for place in range(model.chunk_frames // 4)]
        rows = model.embed_chunk(torch.cat([groups[i] for i in order]))
        for place, i in enumerate(order):
            assert torch.equal(rows[64 * place : 64 * place + 64], alone[i])


def test_a_video_gives_the_same_rows_from_the_host_and_from_the_device(model: VisionModel) -> None:
    frames = moving_frames(44)
    rows = model.embed(frames)
    assert torch.equal(model.embed(frames.pin_memory()), rows)
    assert torch.equal(model.embed(frames.cuda()), rows)
    assert rows.shape == (44 * 16, 4096)
    assert bool(rows.isfinite().all())


def test_threads_on_streams_of_their_own_share_a_model(model: VisionModel) -> None:
    videos = [moving_frames(24, seed).cuda() for seed in range(6)]
    alone = [model.embed(video) for video in videos]

    def embed(i: int) -> bool:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            rows = [model.embed(videos[i]) for _ in range(5)]
        stream.synchronize()
        return all(torch.equal(each, alone[i]) for each in rows)

    torch.cuda.synchronize()
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(embed, range(6)))


def test_work_ends_between_chunks(model: VisionModel) -> None:
    answers = iter([False, True])
    with pytest.raises(ServingError, match="cancelled while running the vision tower"):
        model.embed(moving_frames(3 * model.chunk_frames), Deadline(cancelled=lambda: next(answers)))
    assert next(answers, None) is None


def test_bfloat16_is_close_to_float32(model: VisionModel, exact: VisionModel) -> None:
    found = accuracy(model, exact, moving_frames(8, 5).cuda())
    assert found.worst_token_off < 0.001
    assert found.worst_merged_off < 0.001
    assert found.choices_flipped < 0.2


def test_fp8_is_near_float32(exact: VisionModel) -> None:
    model = VisionModel(*random_parts("cuda", torch.bfloat16), Quantization.FP8)
    found = accuracy(model, exact, moving_frames(8, 5).cuda())
    assert found.mean_token_off < 0.001
    assert found.mean_merged_off < 0.001
    rows = model.embed(moving_frames(24).cuda())
    assert bool(rows.isfinite().all())
    assert torch.equal(model.embed_chunk(moving_frames(24)[20:]), rows[20 * 16 :])


def test_a_host_without_a_compiler_gets_the_same_but_for_rounding(
    model: VisionModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frames = moving_frames(8).cuda()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "compile", _no_compiler)
        slower = VisionModel(*random_parts("cuda", torch.bfloat16))
    assert "compiling failed" in caplog.text
    cosine = torch.cosine_similarity(slower.tokens(frames), model.tokens(frames), dim=2)
    assert cosine.min() > 0.999


def _no_compiler(*_: object, **__: object) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise RuntimeError("no C compiler found")

    return fail
