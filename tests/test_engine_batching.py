"""The embedded engine with a tiny model: batches, prefix reuse, stops, cancels, and its end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from build_scripts.export_llm import export_llm
from internvideo_server.engine import Engine, Output, RefusedRequestError, parse_request
from internvideo_server.limits import EngineLimits

SLOTS, MAX_SEQ = 4, 192
END = 10**6  # no token: answers run to their length
PATIENCE_S = 60.0


class Answer:
    """A sink that collects one request's responses; ``on_send`` may look at each."""

    def __init__(self, on_send: Callable[[Answer], None] = lambda answer: None) -> None:
        self.ids: list[int] = []
        self.outputs: list[Output] = []
        self.error: str | None = None
        self.cancelled = False
        self.ends = 0
        self.first, self.done = threading.Event(), threading.Event()
        self._on_send = on_send

    def send(self, output: Output) -> None:
        self.outputs.append(output)
        self.ids += output.output_ids.tolist()
        self.first.set()
        self._on_send(self)
        if output.final:
            self.ends += 1
            self.done.set()

    def fail(self, text: str, *, cancelled: bool = False) -> None:
        self.error = text
        self.ends += 1
        self.done.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def wait(self) -> list[int]:
        assert self.done.wait(PATIENCE_S), "no end"
        assert self.error is None, self.error
        return self.ids


def export(checkpoint: Path, out: Path, **limits: int) -> Path:
    export_llm(checkpoint, out, **{"max_batch_size": SLOTS, "max_frames": 4, "max_seq_len": MAX_SEQ, **limits})
    return out


def start(engine_dir: Path, device: str, *, reuse: bool = True, max_queue_size: int = 0) -> Engine:
    return Engine.load(
        engine_dir, torch.device(device), max_queue_size=max_queue_size, reuse=reuse, cancellation_check_period=0.02
    )


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("engine") / "tiny")


@pytest.fixture(scope="module")
def engine(engine_dir: Path, device: str) -> Iterator[Engine]:
    running = start(engine_dir, device)
    yield running
    running.close()


def ask(
    engine: Engine,
    ids: list[int],
    count: int = 12,
    *,
    table: torch.Tensor | None = None,
    answer: Answer | None = None,
    **more: Any,
) -> Answer:
    """Submit a prompt; values in ``more`` are tensors or scalars by their input's name."""
    answer, name = answer or Answer(), str(more.pop("name", ""))
    tensors = {
        "input_ids": np.array([ids], np.int32),
        "request_output_len": np.array([[count]], np.int32),
        "streaming": np.array([[True]]),
        **{key: value if isinstance(value, np.ndarray) else np.array([[value]]) for key, value in more.items()},
    }
    request = parse_request(tensors, table, engine.limits, exclude_input=True, reuse=True)
    engine.submit(name, request, answer)
    return answer


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 1000, length).tolist()


def with_video(engine: Engine, seed: int, rows: int = 16, length: int = 80) -> dict[str, Any]:
    """A prompt whose middle is a table of random rows."""
    vocab = engine.limits.vocab_size
    ids = [*prompt(seed, 20), *range(vocab, vocab + rows), *prompt(seed + 1, length - rows - 20)]
    extra = np.where(np.array([ids]) >= vocab, seed + 1, 0).astype(np.uint64)
    table = torch.randn(1, rows, engine.limits.hidden_size, generator=torch.Generator().manual_seed(seed))
    return {"ids": ids, "table": table, "prompt_table_extra_ids": extra}


def idle(engine: Engine) -> bool:
    """Whether nothing is left of any request; changes only when the generation thread has dropped the last."""
    with engine._lock:
        return not (engine._running or engine._waiting) and len(engine._manager.tables._free) == SLOTS


def wait_until_idle(engine: Engine) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not idle(engine) and time.monotonic() < deadline:
        ask(engine, [1], 1).wait()  # a whole turn of the generation loop
    assert idle(engine)


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


def test_the_end_id_is_not_shown_and_a_stop_word_is(engine: Engine) -> None:
    ids = ask(engine, prompt(5, 25), 20).wait()
    assert ask(engine, prompt(5, 25), 20, end_id=ids[6]).wait() == ids[: ids.index(ids[6])]
    word = ids[4:6]
    first = next(i for i in range(len(ids)) if ids[i : i + 2] == word)
    stop_words = np.array([[word, [2, -1]]], np.int32)
    assert ask(engine, prompt(5, 25), 20, stop_words_list=stop_words).wait() == ids[: first + 2]
    one = np.array([[[ids[3]], [1]]], np.int32)
    assert ask(engine, prompt(5, 25), 20, stop_words_list=one).wait() == ids[: ids.index(ids[3]) + 1]


def test_min_tokens_holds_the_end_back_and_bad_words_never_come(engine: Engine) -> None:
    ids = ask(engine, prompt(6, 25), 20).wait()
    assert ask(engine, prompt(6, 25), 20, end_id=ids[0]).wait() == []
    assert len(ask(engine, prompt(6, 25), 20, end_id=ids[0], min_tokens=5).wait()) >= 5
    assert ids[0] not in ask(engine, prompt(6, 25), 20, bad_words_list=np.array([[[ids[0]], [1]]], np.int32)).wait()


def test_words_and_bans_outside_the_vocabulary_do_no_harm(engine: Engine) -> None:
    odd = np.array([[[-5, 10**7, 2**31 - 1], [1, 2, 3]]], np.int32)
    expected = ask(engine, prompt(7, 25)).wait()
    assert ask(engine, prompt(7, 25), bad_words_list=odd, stop_words_list=odd).wait() == expected


def test_penalties_turn_repetition_away(engine: Engine) -> None:
    plain = ask(engine, prompt(8, 25), 100).wait()
    varied = ask(engine, prompt(8, 25), 100, frequency_penalty=50.0).wait()
    assert len(set(varied)) == 100 > len(set(plain))


def test_streaming_shows_new_tokens_and_all_log_probs(engine: Engine) -> None:
    answer = ask(engine, prompt(9, 25), 10, return_log_probs=True)
    ids = answer.wait()
    shown = 0
    for output in answer.outputs:
        shown += len(output.output_ids)
        assert output.log_probs is not None and len(output.log_probs) == shown
    assert shown == len(ids) == 10
    whole = ask(engine, prompt(9, 25), 10, return_log_probs=True, streaming=False, exclude_input_in_output=False)
    assert whole.wait() == prompt(9, 25) + ids and len(whole.outputs) == 1
    np.testing.assert_allclose(whole.outputs[0].log_probs, answer.outputs[-1].log_probs, atol=1e-5)
    assert {output.num_input_tokens for output in answer.outputs} == {None}


def test_no_log_probs_unless_asked_for(engine: Engine) -> None:
    answer = ask(engine, prompt(9, 25), 3, return_num_input_tokens=True)
    answer.wait()
    assert {output.log_probs for output in answer.outputs} == {None}
    assert {output.num_input_tokens for output in answer.outputs} == {25}


def test_stop_ends_a_running_and_a_waiting_request(engine: Engine) -> None:
    running = [ask(engine, prompt(seed, 10), 150, name=f"run-{seed}") for seed in range(SLOTS)]
    waiting = ask(engine, prompt(50, 10), 150, name="wait")
    engine.stop("wait")
    assert waiting.wait() == [] and waiting.ends == 1
    running[0].first.wait(PATIENCE_S)
    engine.stop("run-0")
    engine.stop("run-0")
    engine.stop("nobody")
    assert len(running[0].wait()) < 150
    assert [len(answer.wait()) for answer in running[1:]] == [150] * (SLOTS - 1)
    wait_until_idle(engine)


def test_a_full_queue_is_refused(engine_dir: Path, device: str) -> None:
    engine = start(engine_dir, device, max_queue_size=2)
    try:
        answers = [ask(engine, prompt(seed, 10), 100) for seed in range(SLOTS + 2)]
        with pytest.raises(RefusedRequestError, match="Maximum queue size of 2 has been reached, please try again later"):
            ask(engine, prompt(99, 10))
        assert [len(answer.wait()) for answer in answers] == [100] * len(answers)
        assert len(ask(engine, prompt(99, 10), 5).wait()) == 5
    finally:
        engine.close()


def test_a_storm_of_cancels_leaves_nothing_behind(engine: Engine) -> None:
    ask(engine, prompt(0, 10), 2).wait()
    threads = set(threading.enumerate())
    expected = ask(engine, **with_video(engine, 40)).wait()

    def leave(answer: Answer) -> None:
        answer.cancelled = True

    answers = []
    for number in range(300):
        request = with_video(engine, number % 7 * 10, rows=4 + number % 12)
        answers.append(ask(engine, **request, count=150, name=f"storm-{number}", answer=Answer(leave)))
        if number % 3 == 0:
            engine.stop(f"storm-{number}")
        elif number % 3 == 1:
            answers[-1].cancelled = True
    for answer in answers:
        assert answer.done.wait(PATIENCE_S)
    assert {answer.ends for answer in answers} == {1}
    wait_until_idle(engine)
    assert set(threading.enumerate()) == threads
    assert ask(engine, **with_video(engine, 40)).wait() == expected


def test_a_client_that_cannot_be_answered_harms_nobody(engine: Engine) -> None:
    def broken(answer: Answer) -> None:
        raise OSError("the client's stream is gone")

    bad = ask(engine, prompt(1, 10), 100, answer=Answer(broken))
    good = ask(engine, prompt(2, 10), 100)
    assert len(good.wait()) == 100
    assert bad.done.wait(PATIENCE_S)
    assert (len(bad.outputs), bad.error) == (1, "a response could not be sent")
    wait_until_idle(engine)


def test_a_request_that_cannot_enter_the_batch_is_told_so_and_harms_nobody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise MemoryError("no room for its rows")

    with monkeypatch.context() as patch:
        patch.setattr(engine._manager.tables, "admit", full)
        bad = ask(engine, prompt(1, 10))
    assert bad.done.wait(PATIENCE_S)
    assert bad.error == "the prompt table could not be taken: MemoryError"
    assert "no room for its rows" in caplog.text
    assert len(ask(engine, prompt(2, 10), 20).wait()) == 20
    wait_until_idle(engine)


def test_figures_that_cannot_be_reported_end_no_thread(engine_dir: Path, device: str) -> None:
    asked = threading.Event()

    def report(active: int, waiting: int) -> None:
        asked.set()
        raise RuntimeError("no room in the shared memory")

    engine = Engine.load(
        engine_dir, torch.device(device), max_queue_size=0, reuse=True, cancellation_check_period=0.02, report=report
    )
    try:
        assert asked.wait(PATIENCE_S)
        assert len(ask(engine, prompt(2, 10), 20).wait()) == 20
    finally:
        engine.close()


def test_the_death_of_the_generation_thread_fails_all_and_later_requests(
    engine_dir: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(engine_dir, device)

    def crash(*_: object) -> None:
        raise RuntimeError("out of memory, say")

    answers = [ask(engine, prompt(seed, 10), 170) for seed in range(SLOTS + 2)]
    answers[0].first.wait(PATIENCE_S)
    monkeypatch.setattr(engine._manager.tables, "apply_changes", crash)
    for answer in answers:
        assert answer.done.wait(PATIENCE_S)
        assert answer.error is not None and ("out of memory" in answer.error or "unload and load the model" in answer.error)
    with pytest.raises(RefusedRequestError, match="unload and load the model"):
        while True:
            refused = ask(engine, prompt(1, 10))
            assert refused.done.wait(PATIENCE_S) and refused.error is not None
    with pytest.raises(RefusedRequestError, match="unload and load the model"):
        engine.stop("anything")  # so a probe by `stop` finds out
    engine.close()


def test_closing_fails_what_is_under_way(engine_dir: Path, device: str) -> None:
    engine = start(engine_dir, device)
    answers = [ask(engine, prompt(seed, 10), 170) for seed in range(SLOTS + 2)]
    answers[0].first.wait(PATIENCE_S)
    engine.close()
    for answer in answers:
        assert answer.done.is_set() and answer.ends == 1
    with pytest.raises(RefusedRequestError):
        ask(engine, prompt(1, 10))


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
