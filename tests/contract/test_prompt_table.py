"""Virtual tokens: rows of the request's own prompt_embedding_table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.contract.engine_client import LOG_PROBS, REQUIRED_OUTPUTS, EngineClient, RefusedError

pytestmark = pytest.mark.server

ROWS = 32


def with_table(engine: EngineClient, content: int, length: int = 100) -> dict[str, Any]:
    """A prompt with a table of random rows in its middle."""
    ids = [*engine.prompt(30), *engine.virtual(ROWS), *engine.prompt(length - 30 - ROWS)]
    extra = np.where(np.array([ids]) >= engine.limits.vocab_size, content, 0).astype(np.uint64)
    return {"ids": ids, "prompt_embedding_table": engine.table(ROWS), "prompt_table_extra_ids": extra}


def likelihoods(engine: EngineClient, request: dict[str, Any]) -> Any:
    """Log probabilities of first tokens, drawn by fixed seeds: says whether two prompts are the same to the model.

    Drawn at a temperature where all of the 50 likeliest come equally often: a model may be certain of its first choice whatever
    the rows say, but the log probabilities of what it does not expect move with every row.
    """
    found = []
    for seed in range(4):
        sampling = {"runtime_top_k": 50, "temperature": 50.0, "seed": seed, "return_log_probs": True}
        answer = engine.ask(**{**request, **sampling}, count=1, outputs=(*REQUIRED_OUTPUTS, *LOG_PROBS))
        found.append(answer.last("output_log_probs").item())
    # Two runs over the same prompt may add in another order; what a row changes is far more.
    return pytest.approx(found, abs=1e-5 if engine.exact else 1e-2)


@pytest.fixture
def content(engine: EngineClient) -> int:
    """An extra id that no earlier test or run used: the server may still hold the cache of those."""
    return int(np.random.default_rng().integers(1, 2**63))


def test_the_same_content_gives_the_same_answer_again(engine: EngineClient, content: int) -> None:
    request = with_table(engine, content)
    answers = [engine.ask(**request).tokens for _ in range(3)]  # from the second on out of the reused cache
    assert answers[0] == answers[1] == answers[2]


def test_the_rows_matter(engine: EngineClient, content: int) -> None:
    request = with_table(engine, content)
    table = request["prompt_embedding_table"]
    other = {
        **request,
        "prompt_embedding_table": -table,
        "prompt_table_extra_ids": request["prompt_table_extra_ids"] + np.uint64(1),
    }
    first = likelihoods(engine, request)
    assert likelihoods(engine, request).expected == first
    assert likelihoods(engine, other).expected != first


@pytest.mark.parametrize("place", range(4))
def test_contents_of_four_words_are_the_same_only_if_all_words_are(engine: EngineClient, content: int, place: int) -> None:
    """As ``preprocessing`` sends them: the words of a medium's key in turn."""
    request = with_table(engine, content)
    words = np.array([content, 2, 3, 4], np.uint64)
    nearly = words + (np.arange(4) == place).astype(np.uint64)

    def named(key: Any, table: torch.Tensor) -> dict[str, Any]:
        extra = np.zeros_like(request["prompt_table_extra_ids"])
        extra[:, 30 : 30 + ROWS] = np.tile(key, ROWS // 4)
        return {**request, "prompt_embedding_table": table, "prompt_table_extra_ids": extra}

    table = request["prompt_embedding_table"]
    first = likelihoods(engine, named(words, table))
    assert likelihoods(engine, named(nearly, -table)).expected != first
    assert likelihoods(engine, named(words, table)).expected == first


def test_an_id_means_its_row(engine: EngineClient, content: int) -> None:
    """Rows in another order under ids in that order are the same prompt."""
    request = with_table(engine, content)
    order = np.random.default_rng(0).permutation(ROWS)
    ids = list(request["ids"])
    ids[30 : 30 + ROWS] = [engine.limits.vocab_size + int(np.flatnonzero(order == row)[0]) for row in range(ROWS)]
    moved = {**request, "ids": ids, "prompt_embedding_table": request["prompt_embedding_table"][:, order]}
    moved["prompt_table_extra_ids"] = request["prompt_table_extra_ids"] * np.uint64(1) + (request["prompt_table_extra_ids"] > 0)
    assert likelihoods(engine, moved).expected == likelihoods(engine, request)


def test_a_table_that_no_id_names_changes_nothing(engine: EngineClient) -> None:
    ids = engine.prompt(40)
    expected = engine.ask(ids).tokens
    zeros = torch.zeros_like(engine.table(1))
    assert engine.ask(ids, prompt_embedding_table=zeros, prompt_table_extra_ids=np.zeros((1, 40), np.uint64)).tokens == expected


def test_a_full_table_is_taken(engine: EngineClient, content: int) -> None:
    rows = engine.limits.max_rows
    ids = [*engine.prompt(5), *engine.virtual(rows), *engine.prompt(5)]
    if len(ids) >= engine.limits.max_seq_len:
        pytest.skip("the engine's context is shorter than its prompt table")
    extra = np.where(np.array([ids]) >= engine.limits.vocab_size, content, 0).astype(np.uint64)
    answer = engine.ask(ids, 3, prompt_embedding_table=engine.table(rows), prompt_table_extra_ids=extra)
    assert len(answer.tokens) == 3


def test_two_contents_in_one_prompt(engine: EngineClient, content: int) -> None:
    half = ROWS // 2
    ids = [*engine.virtual(half), *engine.prompt(10), *engine.virtual(half, first=half), *engine.prompt(10)]
    extra = np.array([[content] * half + [0] * 10 + [content + 1] * half + [0] * 10], np.uint64)
    request = {"ids": ids, "prompt_embedding_table": engine.table(ROWS), "prompt_table_extra_ids": extra}
    assert engine.ask(**request).tokens == engine.ask(**request).tokens


@pytest.mark.parametrize("extra", ["missing", "of the wrong length"])
def test_extra_ids_are_needed_where_the_cache_is_reused(engine: EngineClient, content: int, extra: str) -> None:
    request = with_table(engine, content)
    request["prompt_table_extra_ids"] = None if extra == "missing" else request["prompt_table_extra_ids"][:, :-1]
    if engine.reuses_cache:
        with pytest.raises(RefusedError, match="Input token extra ids must be provided when enabling kv cache reuse"):
            engine.ask(**request)
    else:
        assert len(engine.ask(**request).tokens) == 8  # a list of the wrong length is dropped without a word


def test_a_table_beyond_the_engines_is_refused(engine: EngineClient, content: int) -> None:
    request = with_table(engine, content)
    rows = engine.limits.max_rows + 1
    with pytest.raises(RefusedError, match=rf"Prompt vocab size {rows} is larger than max prompt vocab size of {rows - 1}"):
        engine.ask(**{**request, "prompt_embedding_table": engine.table(rows)})
    assert len(engine.ask(engine.prompt(10)).tokens) == 8


def test_a_table_of_another_dtype_is_refused(engine: EngineClient, content: int) -> None:
    request = with_table(engine, content)
    other = torch.float16 if engine.limits.dtype != "float16" else torch.float32
    with pytest.raises(RefusedError, match=r"data-type is '\w+', but model .*expects|data type doesn't match"):
        engine.ask(**{**request, "prompt_embedding_table": request["prompt_embedding_table"].to(other)})
