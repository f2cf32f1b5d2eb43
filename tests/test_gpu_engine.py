"""The embedded engine on a GPU: attention over pages, prompt tables and shared prefixes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from internvideo_server.engine import Engine
from tests.engine_lab import SLOTS, Answer, ask, export, start, with_video
from tests.paged_attention import HEAD_DIM, Case

pytestmark = pytest.mark.gpu

SCALE = HEAD_DIM**-0.5
RAGGED = [
    ([1, 17, 300], [1, 1, 1]),
    ([256, 257, 512, 40], [1, 1, 1, 1]),
    ([600], [1]),
    ([5, 64, 300], [5, 64, 300]),
    ([300, 256, 9], [40, 1, 9]),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("page_size", [32, 256])
@pytest.mark.parametrize("lengths, new", RAGGED)
def test_attention_is_plain_attention(dtype: torch.dtype, page_size: int, lengths: list[int], new: list[int]) -> None:
    for kv_heads, group in ((2, 4), (3, 1), (1, 5)):
        case = Case(lengths, new, page_size, kv_heads, group, shared=3, seed=1, dtype=dtype, device="cuda")
        step = case.decoding(spare_pages=2) if set(new) == {1} else case.packed()
        out = step.attend(0, case.query, case.key, case.value, SCALE)
        torch.testing.assert_close(out, case.expected(), rtol=0, atol=TOLERANCE[dtype])


@pytest.fixture(scope="module")
def engine_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32, so that a GPU's ids are a CPU's."""
    return export(checkpoint, tmp_path_factory.mktemp("engine") / "tiny", max_frames=40, max_seq_len=2048)


@pytest.fixture(scope="module")
def on_cpu(engine_dir: Path) -> Iterator[Engine]:
    engine = start(engine_dir, "cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def on_gpu(engine_dir: Path) -> Iterator[Engine]:
    engine = start(engine_dir, "cuda")
    yield engine
    engine.close()


def requests(engine: Engine, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Of different lengths, each with a video of its own."""
    return [with_video(engine, 10 * (first + i), rows=640 - 32 * i, length=700 + 90 * i) for i in range(count)]


def answers(engine: Engine, asked: list[dict[str, Any]]) -> list[list[int]]:
    return [answer.wait() for answer in [ask(engine, **request, count=20) for request in asked]]


def test_greedy_ids_are_those_of_a_cpu(on_cpu: Engine, on_gpu: Engine) -> None:
    asked = requests(on_cpu, 2 * SLOTS)
    expected = [ids for request in asked for ids in answers(on_cpu, [request])]
    assert [ids for request in asked for ids in answers(on_gpu, [request])] == expected  # alone
    assert answers(on_gpu, asked) == expected  # and in batches that requests enter and leave


def test_tables_that_change_reach_the_next_request(on_cpu: Engine, on_gpu: Engine) -> None:
    """More videos than slots, so each slot's rows change, while another request decodes."""
    asked = requests(on_cpu, 3, first=20)
    long = [ask(on_gpu, **request, count=300) for request in requests(on_cpu, 1, first=30)]
    for _ in range(3):
        assert answers(on_gpu, asked) == answers(on_cpu, asked)
    long[0].wait()


def test_a_table_on_the_gpu_is_a_table_on_the_host(on_cpu: Engine, on_gpu: Engine) -> None:
    request = requests(on_cpu, 1, first=40)[0]
    expected = answers(on_cpu, [request])
    assert answers(on_gpu, [{**request, "table": request["table"].cuda()}]) == expected


def test_a_second_turn_reads_the_first_ones_pages(on_cpu: Engine, on_gpu: Engine) -> None:
    request = requests(on_cpu, 1, first=50)[0]
    (first,) = answers(on_gpu, [request])
    question = [7, 8, 9]
    ids = [*request["ids"], *first, *question]
    extra = np.concatenate([request["prompt_table_extra_ids"][0], np.zeros(len(first) + len(question), np.uint64)])[None]
    second = {"ids": ids, "table": request["table"], "prompt_table_extra_ids": extra}
    computed: list[int] = []
    hook = on_gpu._batch.tables.register_forward_pre_hook(lambda _, ids: computed.append(ids[0].numel()))
    try:
        assert answers(on_gpu, [second]) == answers(on_cpu, [second])
    finally:
        hook.remove()
    assert sum(computed) <= len(ids) - len(request["ids"]) // 32 * 32 + 2 * 20  # both answers' own steps


def test_sampled_answers_of_a_seed_repeat_among_others(on_gpu: Engine) -> None:
    request = requests(on_gpu, 1, first=60)[0]
    sampling = {"runtime_top_p": np.float32(0.9), "temperature": np.float32(1.5), "seed": np.uint64(5)}
    alone = ask(on_gpu, **request, count=20, **sampling).wait()
    others = [ask(on_gpu, **other, count=20, answer=Answer()) for other in requests(on_gpu, 3, first=61)]
    assert ask(on_gpu, **request, count=20, **sampling).wait() == alone
    for other in others:
        other.wait()
