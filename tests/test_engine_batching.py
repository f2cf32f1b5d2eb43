"""The embedded engine with a tiny model: requests share a batch, a cache and nothing else."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from internvideo_server.engine import Engine, EngineFigures, load_engine
from internvideo_server.limits import EngineLimits
from tests.asking import until
from tests.engine_lab import (
    MAX_SEQ,
    PATIENCE_S,
    SLOTS,
    Answer,
    Several,
    ask,
    colliding,
    export,
    prompt,
    start,
    with_video,
)


def test_greedy_answers_are_the_same_alone_and_among_others(engine: Engine) -> None:
    requests = [with_video(engine, 10 * seed, length=60 + 20 * seed) for seed in range(5)]
    requests += [{"ids": prompt(seed, 9 * seed)} for seed in range(1, 4)]
    alone = [ask(engine, **request).wait() for request in requests]
    together = [ask(engine, **request) for request in requests]
    assert [answer.wait() for answer in together] == alone
    assert len({tuple(ids) for ids in alone}) == len(requests)


def test_a_seed_gives_the_same_answer_whatever_its_neighbours(engine: Engine) -> None:
    def sampled(seed: int) -> Answer:
        return ask(engine, prompt(1, 30), runtime_top_p=0.95, temperature=1.5, seed=seed)

    alone = [sampled(seed).wait() for seed in range(6)]
    assert len({tuple(ids) for ids in alone}) > 1
    greedy = ask(engine, prompt(1, 30)).wait()
    together = [sampled(seed) for seed in range(6)] + [ask(engine, prompt(1, 30))]
    assert [answer.wait() for answer in together] == [*alone, greedy]


def test_a_reused_prefix_gives_the_answer_of_a_fresh_cache(engine: Engine, engine_dir: Path, device: str) -> None:
    request = with_video(engine, 77, length=120)
    fresh = start(engine_dir, device, reuse=False)
    try:
        expected = ask(fresh, **request).wait()
    finally:
        fresh.close()
    assert [ask(engine, **request).wait() for _ in range(3)] == [expected] * 3
    longer = {**request, "ids": request["ids"] + expected + [5, 6]}  # the next turn of a conversation
    longer["prompt_table_extra_ids"] = np.pad(request["prompt_table_extra_ids"], ((0, 0), (0, len(expected) + 2)))
    assert ask(engine, **longer).wait() == ask(engine, **longer).wait()


def test_another_video_under_the_same_ids_gives_another_answer(engine: Engine) -> None:
    first = with_video(engine, 20)
    second = {**first, "table": -first["table"], "prompt_table_extra_ids": first["prompt_table_extra_ids"] * np.uint64(9)}
    answers = [ask(engine, **request).wait() for request in (first, second, first)]
    assert answers[0] == answers[2] != answers[1]


def test_videos_that_agree_in_three_words_of_their_key_share_nothing(engine: Engine, engine_dir: Path, device: str) -> None:
    requests = colliding(engine, 40)
    fresh = start(engine_dir, device, reuse=False)
    try:
        expected = [ask(fresh, **request).wait() for request in requests]
    finally:
        fresh.close()
    assert len({tuple(ids) for ids in expected}) > 1
    assert [ask(engine, **request).wait() for request in requests] == expected
    together = [ask(engine, **request) for request in requests]
    assert [answer.wait() for answer in together] == expected


def test_a_prompt_table_that_cannot_be_served_fails_its_request_only(engine: Engine) -> None:
    other = ask(engine, prompt(3, 30), 60)
    request = with_video(engine, 30)
    refused = ask(engine, **{**request, "table": request["table"][:, :8]})
    assert refused.done.wait(PATIENCE_S)
    assert refused.error is not None and "of a table of 8 rows" in refused.error
    assert len(other.wait()) == 60


def test_more_requests_than_the_batch_holds_all_answer(engine: Engine) -> None:
    answers = [ask(engine, prompt(seed, 20), 10 + seed) for seed in range(3 * SLOTS)]
    assert [len(answer.wait()) for answer in answers] == [10 + seed for seed in range(3 * SLOTS)]
    assert max(answer.ends for answer in answers) == 1


def test_every_request_may_fill_its_whole_context_at_once(engine: Engine) -> None:
    for turn in range(2):  # the cache still holds the blocks of the turns before
        answers = [ask(engine, prompt(100 * turn + seed, MAX_SEQ // 2), 10**6) for seed in range(SLOTS + 2)]
        assert [len(answer.wait()) for answer in answers] == [MAX_SEQ // 2] * (SLOTS + 2)
    assert len(ask(engine, prompt(999, MAX_SEQ - 1), 10**6).wait()) == 1


def test_figures_that_cannot_be_reported_end_no_thread(engine_dir: Path, device: str) -> None:
    asked = threading.Event()

    def report(figures: EngineFigures) -> None:
        asked.set()
        raise RuntimeError("no room in the shared memory")

    engine = load_engine(
        engine_dir, torch.device(device), max_queue_size=0, reuse=True, cancellation_check_period=0.02, report=report
    )
    try:
        assert asked.wait(PATIENCE_S)
        assert len(ask(engine, prompt(2, 10), 20).wait()) == 20
    finally:
        engine.close()


def test_the_batch_the_queue_and_the_cache_are_reported(engine_dir: Path, device: str) -> None:
    told: list[EngineFigures] = []
    engine = load_engine(
        engine_dir,
        torch.device(device),
        max_queue_size=0,
        reuse=True,
        cancellation_check_period=0.01,
        report=told.append,
    )
    try:
        answers = [ask(engine, prompt(seed, 10), 170) for seed in range(SLOTS + 2)]
        for answer in answers:
            answer.wait()
        assert max(each.active for each in told) == SLOTS and max(each.waiting for each in told) > 0
        shares = [each.cache_used for each in told if each.cache_used is not None]
        assert all(0 <= used <= 1 for used in shares) and max(shares) > 0
        until(lambda: (told[-1].active, told[-1].waiting) == (0, 0), "the figures stayed")
        assert told[-1].cache_used is not None and told[-1].cache_used < max(shares)
        answers_alone = [10 + 170 - 1] * len(answers)  # the last token of an answer is never an input
        assert told[-1].computed_tokens == sum(answers_alone)
    finally:
        engine.close()


def test_an_engine_that_does_not_fit_fails_when_it_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    huge = export(checkpoint, tmp_path / "huge", max_batch_size=4096, max_seq_len=32768)
    with pytest.raises((MemoryError, RuntimeError)):
        start(huge, "cpu")


@pytest.mark.parametrize("case", ["f8", "f16"])
def test_greedy_ids_are_the_original_models(golden: Path, tmp_path: Path, case: str, device: str) -> None:
    """Fed with the golden vision embeddings through the prompt table."""
    reference = json.loads((golden / case / "reference.json").read_text())
    ids = np.array(reference["input_ids"])
    rows = torch.from_numpy(np.load(golden / case / "vision_embeddings.npy"))
    engine = start(export(golden / "model", tmp_path / "golden", max_frames=16, max_seq_len=1024), device)
    try:
        video = ids == reference["img_context_token_id"]
        ids[video] = EngineLimits.from_engine_dir(tmp_path / "golden").vocab_size + np.arange(video.sum())
        answer = ask(
            engine,
            ids.tolist(),
            len(reference["output_ids"]),
            table=rows.reshape(1, -1, rows.shape[-1]),
            end_id=reference["eos_token_id"],
            prompt_table_extra_ids=video[None].astype(np.uint64),
        )
        expected = reference["output_ids"]
        assert answer.wait() == [token for token in expected if token != reference["eos_token_id"]]
    finally:
        engine.close()


def test_several_answers_take_one_pass_over_the_prompt(engine_dir: Path, device: str) -> None:
    engine = start(engine_dir, device)
    computed: list[int] = []
    hook = engine._batch.tables.register_forward_pre_hook(lambda _, ids: computed.append(ids[0].numel()))  # type: ignore[attr-defined]
    try:
        video = with_video(engine, 60, rows=64, length=150)
        several = Several()
        ask(engine, video.pop("ids"), 2, num_return_sequences=4, seed=1, runtime_top_p=1.0, answer=several, **video).wait()
        assert len(several.sequences) == 4
        page = 256 if device == "cuda" else 32
        assert sum(computed) < 150 + 4 * (page + 2)  # what does not fill a page is computed by each
    finally:
        hook.remove()
        engine.close()
