"""vLLM as the engine: what is chosen, what it is told, and what it may take of a GPU. Its own run needs vLLM installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from internvideo_server.engine import VllmOptions, load_engine
from internvideo_server.engine.vllm._batch import tokens_a_step
from internvideo_server.engine.vllm._bias import bias_fields
from internvideo_server.engine_directory import EngineKind
from internvideo_server.export.language_model import Dtype
from internvideo_server.limits import EngineLimits, LimitsError
from internvideo_server.memory import kv_cache_bytes
from internvideo_server.settings import VllmSettings, from_parameters, to_parameters
from tests.engine_lab import Several, ask, colliding, export, guided

GIB = 1 << 30
REAL = EngineLimits("bfloat16", 92560, 4096, 8, 8191, 8192, 8192, 8 * 2048)


def test_an_engine_directory_of_nvidias_is_run_by_nvidias_engine_alone(tmp_path: Path) -> None:
    (tmp_path / "rank0.engine").touch()
    assert EngineKind.choose("auto", tmp_path, gpu=True) is EngineKind.TENSORRT_LLM
    for wanted in ("vllm", "embedded"):
        with pytest.raises(LimitsError, match="holds an engine of TensorRT-LLM"):
            EngineKind.choose(wanted, tmp_path, gpu=True)


def test_vllm_is_chosen_on_a_gpu_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in (True, False):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=installed: found or None)
        expected = EngineKind.VLLM if installed else EngineKind.EMBEDDED
        assert EngineKind.choose("auto", tmp_path, gpu=True) is expected
        assert EngineKind.choose("auto", tmp_path, gpu=False) is EngineKind.EMBEDDED
        assert EngineKind.choose("embedded", tmp_path, gpu=True) is EngineKind.EMBEDDED
    with pytest.raises(LimitsError, match="make setup-vllm"):
        EngineKind.choose("vllm", tmp_path, gpu=True)
    with pytest.raises(LimitsError, match=r"build\.py makes one"):
        EngineKind.choose("tensorrt_llm", tmp_path, gpu=True)


def test_options_reach_the_backend_through_the_models_parameters() -> None:
    arguments = ("max-num-batched-tokens=4096", "enforce_eager=true", "load_format=dummy", 'x={"a": "b=c"}')
    given = VllmSettings(llm_quantization="fp8", tensor_parallel_size=2, gpu_memory=40.5, engine_arg=arguments)
    options = VllmOptions.of(from_parameters(VllmSettings, to_parameters(given)))
    assert (options.quantization, options.tensor_parallel_size, options.gpu_memory) == ("fp8", 2, 40.5)
    expected = {"max_num_batched_tokens": 4096, "enforce_eager": True, "load_format": "dummy", "x": {"a": "b=c"}}
    assert options.engine_args == expected


@pytest.mark.parametrize(("frames", "tokens"), [(80, 8192), (160, 8192), (512, 1024), (1024, 1024)])
def test_no_step_is_long_where_prompts_are(frames: int, tokens: int) -> None:
    limits = replace(REAL, max_prompt_embedding_table_size=REAL.max_batch_size * 16 * frames)
    assert tokens_a_step(limits) == tokens


@pytest.mark.parametrize("text", ["enforce_eager", "=1", "two words=1", ""])
def test_an_argument_without_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=VALUE is needed"):
        VllmSettings(engine_arg=(text,))


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """An engine directory of the real model's size, without its bytes."""
    shape = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    (tmp_path / "llama").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(REAL.to_document()))
    (tmp_path / "llama" / "config.json").write_text(json.dumps(shape))
    with (tmp_path / "llama" / "model.safetensors").open("wb") as file:
        file.truncate(int(14.42 * GIB))
    return tmp_path


def test_keys_and_values_get_what_weights_and_tower_leave(real: Path) -> None:
    plain, fp8 = VllmOptions(), VllmOptions(quantization="fp8")
    request = 2 * 32 * 8 * 128 * 2 * 8192  # 1 GiB
    assert kv_cache_bytes(real, REAL, 140 * GIB, adapt=plain.deployment) == 16 * request  # enough is enough
    small = kv_cache_bytes(real, REAL, 32 * GIB, adapt=plain.deployment)
    assert request <= small < 32 * GIB - 2 * GIB - 14 * GIB
    assert kv_cache_bytes(real, REAL, 32 * GIB, adapt=fp8.deployment) > small + 6 * GIB
    assert kv_cache_bytes(real, REAL, 140 * GIB, 28.0, adapt=plain.deployment) < small
    assert kv_cache_bytes(real, REAL, 19 * GIB, adapt=VllmOptions("fp8", "fp8").deployment) > 0
    with pytest.raises(ValueError, match="give more by --gpu-memory"):
        kv_cache_bytes(real, REAL, 22 * GIB, adapt=plain.deployment)


def test_the_embedded_engine_takes_a_full_batch_at_most_and_one_request_at_least(real: Path) -> None:
    request = 2 * 32 * 8 * 128 * 2 * 8192
    assert kv_cache_bytes(real, REAL, 140 * GIB) == 8 * request
    assert request < kv_cache_bytes(real, REAL, 140 * GIB, 24.0) < 8 * request
    with pytest.raises(ValueError, match="lower --max-frames"):
        kv_cache_bytes(real, REAL, 140 * GIB, 19.0)


# Its attention for CPUs crashes with smaller blocks on some of them (Intel's with AMX).
ON_A_CPU = VllmOptions(engine_args={"enforce_eager": True, "kv_cache_memory_bytes": GIB // 2, "block_size": 32})


def test_vllm_answers_as_the_embedded_engine_does(tmp_path: Path) -> None:
    """On a CPU (`make test-vllm`)."""
    pytest.importorskip("vllm")
    demo = Path(__file__).resolve().parents[1] / "build_scripts" / "demo_model"  # vLLM's attention takes no heads of 16
    folder = export(demo, tmp_path / "engine", max_frames=4, dtype=Dtype.FLOAT32)
    options = {"max_queue_size": 0, "reuse": True, "cancellation_check_period": 0.05}
    answers = []
    for choice in (None, ON_A_CPU):
        engine = load_engine(folder, torch.device("cpu"), vllm=choice, **options)
        try:
            several = Several()
            ask(engine, list(range(100, 140)), 20, num_return_sequences=2, answer=several, **guided("regex", "yes|no")).wait()
            answers.append((ask(engine, list(range(100, 140)), 8).wait(), several.sequences))
        finally:
            engine.close()
    assert answers[0] == answers[1]


def test_vllm_shares_no_prefix_of_videos_that_agree_in_three_words_of_their_key(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    demo = Path(__file__).resolve().parents[1] / "build_scripts" / "demo_model"
    likeliest = {"return_log_probs": True, "num_top_logprobs": np.array([[20]], np.int32)}
    folder, seen = export(demo, tmp_path / "engine", dtype=Dtype.FLOAT32), []
    for reuse in (False, True):
        engine = load_engine(
            folder, torch.device("cpu"), vllm=ON_A_CPU, reuse=reuse, max_queue_size=0, cancellation_check_period=0.05
        )
        try:
            answers = [ask(engine, **{**request, **likeliest}, count=1) for request in colliding(engine, 40) * 2]
            assert all(answer.wait() for answer in answers)
            seen.append(np.stack([answer.outputs[-1].top_logprobs for answer in answers]))
        finally:
            engine.close()
    fresh, reused = seen
    assert np.abs(fresh[1:5] - fresh[0]).max(axis=-1).min() > 1e-3  # the rows matter
    np.testing.assert_allclose(reused, fresh, atol=1e-4)


def test_vllm_is_given_one_item_a_medium_named_by_its_whole_key() -> None:
    pytest.importorskip("vllm")
    from internvideo_server.engine.vllm._prompt import table_prompt

    def names(*media: tuple[int, ...]) -> list[str]:
        """Each medium is 8 rows, by 4 with a token of text behind."""
        four = np.array([1, 1, 1, 1, 0], bool)
        virtual = np.tile(four, 2 * len(media))
        ids, extra = np.full(virtual.shape, 5, np.int32), np.zeros(virtual.shape, np.uint64)
        ids[virtual] = 100 + np.arange(8 * len(media))
        extra[virtual] = [word for words in media for word in words * 2]
        named: list[str] = table_prompt(ids, extra, torch.zeros(8 * len(media), 4), 100)["mm_hashes"]["video"]
        return named

    first, other = names((1, 2, 3, 4), (1, 2, 3, 5))
    assert first != other
    assert names((1, 2, 3, 4)) == [first]
    assert len(names((0, 2, 3, 4))) == 1 and names((0, 2, 3, 4)) != names((0, 2, 3, 4))


@pytest.mark.parametrize("forbidden", [-np.inf, -1e9])
def test_a_few_allowed_tokens_are_a_list_for_vllm(forbidden: float) -> None:
    bias = np.full(5000, forbidden, np.float32)
    bias[[5, 6]] = 0, 2
    assert bias_fields(bias) == {"allowed_token_ids": [5, 6], "logit_bias": {6: 2.0}}


def test_more_biases_than_vllm_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="1025 tokens have a bias"):
        bias_fields(np.r_[np.ones(1025, np.float32), np.zeros(5000, np.float32)])
