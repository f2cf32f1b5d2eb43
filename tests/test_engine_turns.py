"""Nobody waits for a long prompt: it is taken in by steps, and others have their turns between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from internvideo_server.engine import Engine
from internvideo_server.engine.manager import _MAX_STEP_TOKENS
from tests.engine_lab import PATIENCE_S, Answer, ask, export, prompt, start

LONG = 6000
STEPS = LONG // _MAX_STEP_TOKENS["cpu"]


@pytest.fixture(scope="module")
def engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    running = start(export(checkpoint, tmp_path_factory.mktemp("long") / "tiny", max_seq_len=8192), "cpu", reuse=False)
    yield running
    running.close()


def test_streams_get_tokens_while_a_long_prompt_is_taken_in(engine: Engine) -> None:
    streams = [ask(engine, prompt(seed, 20), 5000, name=str(seed)) for seed in range(2)]
    assert all(stream.first.wait(PATIENCE_S) for stream in streams)
    counts = [len(stream.ids) for stream in streams]
    assert len(ask(engine, prompt(9, LONG), 1).wait()) == 1
    gained = [len(stream.ids) - before for stream, before in zip(streams, counts, strict=True)]
    for seed in range(2):
        engine.stop(str(seed))
    assert min(gained) >= STEPS - 1


def test_a_short_prompt_is_answered_while_an_earlier_long_one_is_taken_in(engine: Engine) -> None:
    order: list[str] = []
    long = ask(engine, prompt(10, LONG), 1, answer=Answer(lambda answer: order.append("long")))
    short = ask(engine, prompt(11, 100), 1, answer=Answer(lambda answer: order.append("short")))
    short.wait(), long.wait()
    assert order == ["short", "long"]


def test_short_prompts_do_not_keep_a_long_one_waiting_for_ever(engine: Engine) -> None:
    """One that always has a shorter one beside it."""
    long = ask(engine, prompt(12, LONG), 1)
    shorts = 0
    while not long.done.is_set() and shorts < 100 * STEPS:
        ask(engine, prompt(100 + shorts, 450), 1).wait()
        shorts += 1
    assert len(long.wait()) == 1 and shorts < 100 * STEPS


def test_the_answer_is_that_of_a_prompt_taken_in_at_once(engine: Engine) -> None:
    ids = prompt(13, LONG)
    alone = ask(engine, ids, 8).wait()
    beside = [ask(engine, prompt(seed, 300), 20) for seed in range(20, 23)]
    assert ask(engine, ids, 8).wait() == alone
    assert [len(answer.wait()) for answer in beside] == [20] * 3
