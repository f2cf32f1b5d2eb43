"""Requests that end early, and what ends them: stops, cancels, faults, the engine's own end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from internvideo_server.engine import Engine, RefusedRequestError
from tests.engine_lab import (
    PATIENCE_S,
    SLOTS,
    Answer,
    Several,
    ask,
    guided,
    prompt,
    start,
    wait_until_idle,
    with_video,
)


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
        patch.setattr(engine._batch.tables, "admit", full)
        bad = ask(engine, prompt(1, 10))
    assert bad.done.wait(PATIENCE_S)
    assert bad.error == "[UNAVAILABLE] the server is short of memory; try again in a moment"
    assert "no room for its rows" in caplog.text
    assert len(ask(engine, prompt(2, 10), 20).wait()) == 20
    wait_until_idle(engine)


def test_the_death_of_the_generation_thread_fails_all_and_later_requests(
    engine_dir: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(engine_dir, device)

    def crash(*_: object) -> None:
        raise RuntimeError("out of memory, say")

    answers = [ask(engine, prompt(seed, 10), 170) for seed in range(SLOTS + 2)]
    answers[0].first.wait(PATIENCE_S)
    monkeypatch.setattr(engine._batch.tables, "apply_changes", crash)
    for answer in answers:
        assert answer.done.wait(PATIENCE_S)
        assert answer.error is not None and ("short of memory" in answer.error or "unload and load the model" in answer.error)
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


def test_stopping_and_leaving_end_all_answers_of_a_request(engine: Engine) -> None:
    stopped, left = Several(), Several()
    ask(engine, prompt(41, 10), 150, num_return_sequences=SLOTS + 3, name="several", answer=stopped)
    assert stopped.first.wait(PATIENCE_S)
    engine.stop("several")
    assert stopped.done.wait(PATIENCE_S) and stopped.error is None and stopped.ends == 1
    ask(engine, prompt(42, 10), 150, num_return_sequences=3, answer=left)
    left.cancelled = True
    assert left.done.wait(PATIENCE_S) and left.error is not None and left.ends == 1
    wait_until_idle(engine)


def test_a_request_whose_guide_is_being_compiled_can_be_stopped(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    compiling, go_on = threading.Event(), threading.Event()
    compiler = engine._grammars
    assert compiler is not None
    compile_guide = compiler.compile

    def slow(*args: Any) -> Any:
        compiling.set()
        go_on.wait(PATIENCE_S)
        return compile_guide(*args)

    monkeypatch.setattr(compiler, "compile", slow)
    answer = ask(engine, prompt(54, 10), 20, name="compiling", **guided("regex", "b+"))
    assert compiling.wait(PATIENCE_S)
    assert len(ask(engine, prompt(55, 10), 20).wait()) == 20  # others run meanwhile
    engine.stop("compiling")
    assert answer.wait() == [] and answer.ends == 1
    go_on.set()
    wait_until_idle(engine)
