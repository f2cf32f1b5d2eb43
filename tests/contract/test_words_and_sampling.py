"""End id, stop words, bad words, and sampling."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contract.engine_client import EngineClient

pytestmark = pytest.mark.server


def words(*given: list[int]) -> np.ndarray:
    """[1, 2, L]: all tokens; each word's exclusive end, padded with -1."""
    flat = [token for word in given for token in word]
    ends = np.cumsum([len(word) for word in given])
    return np.array([[flat, [*ends, *[-1] * (len(flat) - len(ends))]]], np.int32)


@pytest.fixture
def case(engine: EngineClient) -> tuple[list[int], list[int]]:
    """A prompt and its greedy answer without an end."""
    prompt = engine.prompt(40)
    return prompt, engine.ask(prompt, 10).tokens


def test_the_end_id_is_never_returned(engine: EngineClient, case: tuple[list[int], list[int]]) -> None:
    prompt, ids = case
    for streaming in (True, False):
        answer = engine.ask(prompt, 10, end_id=ids[3], streaming=streaming, exclude_input_in_output=True)
        assert answer.tokens == ids[: ids.index(ids[3])]


def test_an_answer_may_be_empty(engine: EngineClient, case: tuple[list[int], list[int]]) -> None:
    prompt, ids = case
    answer = engine.ask(prompt, 10, end_id=ids[0])
    assert answer.tokens == []
    assert answer.responses[-1].final


def test_stop_words_are_returned(engine: EngineClient, case: tuple[list[int], list[int]]) -> None:
    prompt, ids = case
    one, two = ids[2], ids[3:5]
    assert engine.ask(prompt, 10, stop_words_list=words([one])).tokens == ids[: ids.index(one) + 1]
    first = next(i for i in range(len(ids)) if ids[i : i + 2] == two)
    assert engine.ask(prompt, 10, stop_words_list=words(two)).tokens == ids[: first + 2]


def test_the_first_of_several_stop_words_ends(engine: EngineClient, case: tuple[list[int], list[int]]) -> None:
    prompt, ids = case
    assert engine.ask(prompt, 10, stop_words_list=words(ids[7:9], [ids[1]])).tokens == ids[: ids.index(ids[1]) + 1]


def test_an_empty_word_list_is_no_list(engine: EngineClient, case: tuple[list[int], list[int]]) -> None:
    prompt, ids = case
    empty = np.zeros((1, 2, 0), np.int32)
    assert engine.ask(prompt, 10, stop_words_list=empty, bad_words_list=empty).tokens == ids


def test_bad_words_do_not_come(engine: EngineClient, case: tuple[list[int], list[int]]) -> None:
    prompt, ids = case
    assert ids[0] not in engine.ask(prompt, 10, bad_words_list=words([ids[0]])).tokens
    pair = ids[:2]
    got = engine.ask(prompt, 10, bad_words_list=words(pair)).tokens
    assert got[0] == ids[0]
    assert all(got[i : i + 2] != pair for i in range(len(got)))


def test_min_tokens_holds_the_end_back(engine: EngineClient, case: tuple[list[int], list[int]]) -> None:
    prompt, ids = case
    assert len(engine.ask(prompt, 10, end_id=ids[0], min_tokens=4).tokens) >= 4


def test_top_k_1_is_greedy_at_any_temperature_and_seed(engine: EngineClient, case: tuple[list[int], list[int]]) -> None:
    prompt, ids = case
    assert engine.ask(prompt, 10, temperature=5.0, seed=7).tokens == ids


def test_without_sampling_inputs_the_answer_is_greedy(engine: EngineClient, case: tuple[list[int], list[int]]) -> None:
    prompt, ids = case
    assert engine.ask(prompt, 10, runtime_top_k=None).tokens == ids


def test_a_seed_gives_the_same_answer_and_another_seed_another(engine: EngineClient) -> None:
    prompt = engine.prompt(30)

    def sampled(seed: int) -> list[int]:
        return engine.ask(prompt, 12, runtime_top_k=50, runtime_top_p=1.0, temperature=5.0, seed=seed).tokens

    assert sampled(1) == sampled(1)
    assert len({tuple(sampled(seed)) for seed in range(1, 6)}) > 1


def test_top_p_of_next_to_nothing_takes_the_likeliest(engine: EngineClient, case: tuple[list[int], list[int]]) -> None:
    prompt, ids = case
    assert engine.ask(prompt, 10, runtime_top_k=0, runtime_top_p=1e-5, temperature=1.0, seed=3).tokens == ids


def test_penalties_turn_away_from_what_was_said(engine: EngineClient, case: tuple[list[int], list[int]]) -> None:
    prompt, ids = case
    varied = engine.ask(prompt, 24, frequency_penalty=100.0).tokens
    assert len(set(varied)) == 24
    if engine.parameter("engine") != "vllm":  # whose presence and frequency penalties look at the answer alone
        assert not set(varied) & set(prompt)  # the prompt's tokens count too
        assert ids[0] not in engine.ask([*prompt, ids[0]], 8, presence_penalty=100.0).tokens
    assert ids[0] not in engine.ask([*prompt, ids[0]], 8, repetition_penalty=1e6).tokens
