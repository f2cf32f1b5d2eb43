"""How long requests may be: one rule, and what cannot work is refused at the start with the largest that can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from build_scripts._engine_plan import Sizes
from build_scripts.checkpoint_sizes import DIMENSIONS, Size, model_config
from internvideo_server.context import LEAST_RESERVE, RESERVE, Context, frame_tokens, most_frames
from internvideo_server.gpus import Gpu
from internvideo_server.launch import Device, LaunchError, settle_length
from internvideo_server.limits import MAX_POSITIONS, LimitsError
from internvideo_server.memory import GIB, Deployment, available_memory
from internvideo_server.settings import ServeSettings

CPU, CUDA = Device(None), Device(0)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """The real model's config.json."""
    (tmp_path / "config.json").write_text(json.dumps(model_config(DIMENSIONS[Size.FULL], "bfloat16")))
    return tmp_path


def gpu(gib: float) -> list[Gpu]:
    return [Gpu(0, "a GPU", "590.1", int(gib * GIB), int(gib * GIB), "9.0")]


def settled(checkpoint: Path, device: Device = CPU, gpus: list[Gpu] | None = None, **changes: Any) -> ServeSettings:
    return settle_length(ServeSettings(**changes), checkpoint, device, device, gpus or [])[0]


# ---- the rule


def test_the_frames_tokens_are_the_published_prompts() -> None:
    for frames, published in ((8, 238), (128, 2998), (512, 11830)):
        assert 47 + 7 + frame_tokens(frames) == published
    assert frame_tokens(1000) - frame_tokens(999) == 24


@given(st.integers(0, 40_000))
def test_the_most_frames_of_a_length_fit_and_four_more_do_not(tokens: int) -> None:
    frames = most_frames(tokens)
    assert frames % 4 == 0 and frame_tokens(frames) <= tokens < frame_tokens(frames + 4)


@given(
    st.none() | st.integers(1, 400).map(lambda groups: 4 * groups),
    st.none() | st.integers(1, 40_000),
    st.sampled_from([128, 512]),
)
def test_what_is_settled_holds_what_it_promises(frames: int | None, length: int | None, carried: int) -> None:
    try:
        context = Context.of(frames, length, carried)
    except LimitsError:
        assume(False)
        return
    assert context.max_frames == (frames or context.max_frames) and context.max_model_len == (length or context.max_model_len)
    assert frame_tokens(context.max_frames) + LEAST_RESERVE <= context.max_model_len <= MAX_POSITIONS
    if length is None:
        assert context.max_model_len == frame_tokens(context.max_frames) + RESERVE


def test_auto_is_what_the_frames_need_and_text_and_answer() -> None:
    assert Context.of(None, None) == Context(128, 7040)
    assert Context.of(512, None) == Context(512, 15872)
    assert Context.of(1236, None).max_model_len <= MAX_POSITIONS
    assert Context.of(None, 4096) == Context(88, 4096)
    assert Context.of(1300, 32768) == Context(1300, 32768)


@pytest.mark.parametrize(
    ("frames", "length", "largest"),
    [
        (4096, None, r"at most --max-frames 1236, or up to 1\d\d\d with less text by --max-model-len 32768"),
        (1240, None, "at most --max-frames 1236"),
        (4096, 32768, r"at most --max-frames 1\d\d\d$"),
        (512, 8192, "at most --max-frames 344"),
        (None, 32769, "from 348 to 32768"),
        (None, 100, "from 348 to 32768"),
    ],
)
def test_what_cannot_be_together_is_refused_with_the_largest_that_can(
    frames: int | None, length: int | None, largest: str
) -> None:
    with pytest.raises(LimitsError, match=largest):
        Context.of(frames, length)


def test_build_goes_by_the_same_rule() -> None:
    for frames in (64, 128, 512, 1200):
        assert Sizes(max_frames=frames).max_seq_len == Context.of(frames, None).max_model_len


# ---- by device


def test_a_cpu_carries_128_frames_and_a_gpu_with_room_512(real: Path) -> None:
    assert settled(real).max_frames == 128
    assert (settled(real, CUDA, gpu(80)).max_frames, settled(real, CUDA, gpu(80)).max_model_len) == (512, "15872")
    between = settled(real, CUDA, gpu(24), llm_engine="embedded").max_frames
    assert between is not None and 80 <= between < 512 and between % 4 == 0


def test_a_cap_counts_like_a_smaller_gpu(real: Path) -> None:
    capped = settled(real, CUDA, gpu(140), llm_engine="embedded", gpu_memory=22.0)
    assert capped.max_frames == settled(real, CUDA, gpu(24), llm_engine="embedded").max_frames
    with pytest.raises(LaunchError, match="--gpu-memory is for a GPU"):
        settled(real, gpu_memory=22.0)


def test_a_gpu_that_is_too_small_is_refused_with_the_most_frames_that_fit(real: Path) -> None:
    with pytest.raises(LaunchError, match=r"--max-frames 512 .* GiB of the GPU .* 22.0 are to be had: at most --max-frames") as e:
        settled(real, CUDA, gpu(24), llm_engine="embedded", max_frames=512)
    largest = int(str(e.value).partition("at most --max-frames ")[2].partition(";")[0])
    assert settled(real, CUDA, gpu(24), llm_engine="embedded", max_frames=largest).max_frames == largest
    with pytest.raises(LaunchError, match="at most --max-frames"):
        settled(real, CUDA, gpu(24), llm_engine="embedded", max_frames=largest + 4)
    with pytest.raises(LaunchError, match=r"no length fits$"):
        settled(real, CUDA, gpu(12), llm_engine="embedded")


def test_an_engine_directory_that_is_too_large_for_the_gpu_is_refused_before_it_is_loaded(real: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    (engine / "llama").mkdir(parents=True)
    with (engine / "llama" / "model.safetensors").open("wb") as weights:
        weights.truncate(14 * GIB)  # without a byte on the disk
    build = {"max_batch_size": 2, "max_input_len": 8191, "max_seq_len": 8192, "max_num_tokens": 8192}
    build["max_prompt_embedding_table_size"] = 2 * 128 * 16
    shape = {"architecture": "LlamaForCausalLM", "dtype": "bfloat16", "vocab_size": 92553, "hidden_size": 4096}
    (engine / "config.json").write_text(json.dumps({"pretrained_config": shape, "build_config": build}))
    assert settled(real, CUDA, gpu(40), llm_engine="embedded", engine=engine).max_frames == 128
    with pytest.raises(LaunchError, match=r"the engine .*engine, which takes .* tokens, needs .* GiB of the GPU"):
        settled(real, CUDA, gpu(12), llm_engine="embedded", engine=engine)


@pytest.mark.parametrize(
    "option",
    [{"llm_quantization": "fp8"}, {"kv_cache_dtype": "fp8"}, {"tensor_parallel_size": 2}, {"engine_arg": ("seed=1",)}],
    ids=lambda option: next(iter(option)),
)
def test_what_is_vllms_is_refused_with_another_engine(real: Path, option: dict[str, Any]) -> None:
    name = next(iter(option)).replace("_", "-")
    with pytest.raises(LaunchError, match=f"--{name} is for vLLM, and the language model runs on embedded"):
        settled(real, CUDA, gpu(140), llm_engine="embedded", **option)


@pytest.mark.parametrize(
    ("cap", "quantization", "cache", "fits"),
    [(24, "none", "auto", True), (16, "none", "auto", False), (24, "fp8", "auto", True), (17, "fp8", "fp8", True)],
)
def test_small_cards_take_what_their_quantisation_leaves(cap: int, quantization: str, cache: str, fits: bool) -> None:
    config = model_config(DIMENSIONS[Size.FULL], "bfloat16")
    deployment = Deployment(config, "bfloat16", 8, 8).on_vllm(quantization, cache, 1)
    assert bool(deployment.most_frames(cap * GIB, 512)) is fits


def test_a_tower_on_another_gpu_leaves_its_room_to_the_engine(real: Path) -> None:
    options = ServeSettings(llm_engine="embedded")
    alone = settle_length(options, real, CUDA, Device(1), gpu(23))[0].max_frames
    together = settle_length(options, real, CUDA, CUDA, gpu(23))[0].max_frames
    assert alone is not None and together is not None and alone > together


def test_the_start_says_frames_tokens_and_memory(real: Path) -> None:
    _, line = settle_length(ServeSettings(max_frames=512), real, CUDA, CUDA, gpu(140))
    assert line.startswith("requests of up to 512 frames and 15872 tokens: 15.0 GiB of weights, ")
    assert "of tables" in line and line.endswith(
        "1.9 GiB of keys and values for each of the longest; 2 GiB for embeddings that come again"
    )


def test_more_frames_by_default_than_the_length_holds_are_refused(real: Path) -> None:
    with pytest.raises(LaunchError, match="--num-frames 80 is more than --max-frames 20"):
        settled(real, max_model_len="1000")


# ---- the embeddings that come again


@pytest.mark.parametrize(
    ("gpus", "megabytes"), [(gpu(143), 2048), (gpu(24), 256), ([], 1024)], ids=["an H200", "24 GiB", "not known"]
)
def test_the_cache_of_embeddings_is_an_eighth_of_what_is_left_and_at_most_2_gib(
    real: Path, gpus: list[Gpu], megabytes: int
) -> None:
    assert settled(real, CUDA, gpus).embedding_cache_mb == megabytes
    assert settled(real, CUDA, gpus, embedding_cache_mb=7).embedding_cache_mb == 7


def test_between_the_bounds_it_follows_what_is_left(real: Path) -> None:
    sizes = [settled(real, CUDA, gpu(gib)).embedding_cache_mb for gib in (36, 40)]
    assert None not in sizes and sizes[1] - sizes[0] == 512 and 256 < sizes[0] < sizes[1] < 2048  # type: ignore[operator]


def test_on_a_cpu_it_follows_the_memory_of_the_host_and_the_line_tells(real: Path) -> None:
    found = {}
    for gib in (256, 30, 34, 8):
        settings, line = settle_length(ServeSettings(), real, CPU, CPU, [], int(gib * GIB))
        found[gib] = settings.embedding_cache_mb
        assert f"; {found[gib] / 1024:.2g} GiB for embeddings that come again" in line  # type: ignore[operator]
    assert (found[256], found[8]) == (2048, 256)


def test_a_tower_on_a_device_of_its_own_counts_what_is_free_there(real: Path) -> None:
    there = [*gpu(143), Gpu(1, "small", "590.1", 8 * GIB, 8 * GIB, "9.0")]
    settings, _ = settle_length(ServeSettings(), real, CUDA, Device(1), there, 4 * GIB)
    assert settings.embedding_cache_mb == 431  # (8 - 2 free - 2 of allowance - 0.63 of weights) GiB / 8
    assert settle_length(ServeSettings(), real, CUDA, CPU, gpu(143), 4 * GIB)[0].embedding_cache_mb == 256


def host_of(root: Path, available_kib: int, **cgroup: str) -> int | None:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {available_kib} kB\n")
    (root / "proc" / "self" / "cgroup").write_text("0::/box\n")
    folder = root / "sys" / "fs" / "cgroup" / "box"
    folder.mkdir(parents=True)
    for name, text in cgroup.items():
        (folder / f"memory.{name}").write_text(text)
    return available_memory(root)


@pytest.mark.parametrize(
    ("cgroup", "most"),
    [
        ({}, 8 << 20),
        ({"max": "max\n", "current": "5\n", "stat": "anon 5\n"}, 8 << 20),
        ({"max": f"{5 << 20}\n", "current": f"{4 << 20}\n", "stat": f"anon 1\ninactive_file {1 << 20}\n"}, 2 << 20),
        ({"max": "5\n", "current": "9\n", "stat": "anon 9\n"}, 0),
    ],
    ids=["no group", "no limit", "a limit", "more than the limit"],
)
def test_the_memory_of_the_host_is_that_of_the_control_group_where_it_is_less(
    tmp_path: Path, cgroup: dict[str, str], most: int
) -> None:
    assert host_of(tmp_path, 8 << 10, **cgroup) == most


def test_a_host_that_does_not_tell_its_memory_is_not_known(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
