"""Sampling of one row, against a naive reference that follows TensorRT-LLM's kernels token by token."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_server.engine import SamplingParams
from internvideo_server.engine._sampling import Sampler
from internvideo_server.engine.sequence_state import SequenceState

VOCAB = 12
END = 3


def sampling(**settings: object) -> SamplingParams:
    return SamplingParams(end_id=END, **settings)  # type: ignore[arg-type]


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


def sampler(setting: SamplingParams) -> Sampler:
    return Sampler(SequenceState(setting))


def process(scores: torch.Tensor, setting: SamplingParams, prompt: list[int], output: list[int]) -> torch.Tensor:
    return sampler(setting).process(scores, prompt, output)


def draw(scores: torch.Tensor, setting: SamplingParams, count: int) -> Counter[int]:
    one = sampler(setting)
    return Counter(int(one.process(scores.clone(), [], []).argmax()) for _ in range(count))


def reference(scores: list[float], setting: SamplingParams, prompt: list[int], output: list[int]) -> list[float]:
    """``penaltyKernels.cu`` and ``banBadWords.cu`` with loops."""
    counts = Counter([*prompt, *output])
    result = []
    for token, score in enumerate(scores):
        value = score / setting.temperature if setting.temperature else score
        if counts[token]:
            value = value * setting.repetition_penalty if value < 0 else value / setting.repetition_penalty
            value -= setting.presence_penalty
            value -= setting.frequency_penalty * counts[token]
        result.append(value)
    if len(output) < setting.min_tokens:
        result[setting.end_id] = -math.inf
    history = [*prompt, *output]
    for word in setting.bad_words:
        if len(word) == 1 or history[-(len(word) - 1) :] == list(word[:-1]):
            result[word[-1]] = -math.inf
    return result


tokens = st.integers(0, VOCAB - 1)


@given(
    scores=st.lists(st.floats(-20, 20, width=32), min_size=VOCAB, max_size=VOCAB),
    prompt=st.lists(st.integers(0, VOCAB + 5), max_size=8),  # ids beyond the vocabulary are virtual tokens
    output=st.lists(tokens, max_size=8),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.5]),
    repetition=st.floats(0.5, 2.0),
    presence=st.floats(-2.0, 2.0),
    frequency=st.floats(-2.0, 2.0),
    min_tokens=st.integers(0, 9),
    bad_words=st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_greedy_scores_equal_the_reference(
    scores: list[float],
    prompt: list[int],
    output: list[int],
    temperature: float,
    repetition: float,
    presence: float,
    frequency: float,
    min_tokens: int,
    bad_words: list[tuple[int, ...]],
) -> None:
    setting = sampling(
        temperature=temperature,
        top_k=1,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        min_tokens=min_tokens,
        bad_words=bad_words,
    )
    got = process(torch.tensor(scores), setting, prompt, output)
    np.testing.assert_allclose(got.numpy(), reference(scores, setting, prompt, output), rtol=1e-4, atol=1e-4)


def test_top_k_draws_only_the_k_likeliest() -> None:
    scores = logits()
    assert set(draw(scores, sampling(top_k=3, temperature=100.0, seed=1), 300)) == set(scores.topk(3).indices.tolist())


def test_top_p_draws_the_smallest_set_that_holds_p() -> None:
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draw(scores, sampling(top_p=0.6, seed=2), 300)) == {0, 1}
    assert set(draw(scores, sampling(top_p=1e-6, seed=2), 50)) == {0}


def test_top_p_is_taken_of_what_top_k_left() -> None:
    scores = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of the two likeliest the first has 0.57 of the mass; without top-k it would take three tokens to reach 0.75.
    assert set(draw(scores, sampling(top_k=2, top_p=0.55, seed=3), 200)) == {0}
    assert set(draw(scores, sampling(top_p=0.75, seed=3), 300)) == {0, 1, 2}


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.8])
def test_samples_follow_the_softmax(temperature: float) -> None:
    scores, count = logits(5), 4000
    drawn = draw(scores, sampling(top_p=1.0, temperature=temperature, seed=4), count)
    expected = (scores / temperature).softmax(0)
    for token in range(VOCAB):
        p = float(expected[token])
        assert abs(drawn[token] / count - p) < 5 * math.sqrt(p * (1 - p) / count) + 1e-3  # five standard deviations


def test_a_seed_gives_the_same_draws_and_another_seed_others() -> None:
    scores = logits(6)

    def sequence(seed: int) -> list[int]:
        one = sampler(sampling(top_p=1.0, temperature=2.0, seed=seed))
        return [int(one.process(scores.clone(), [], []).argmax()) for _ in range(30)]

    assert sequence(7) == sequence(7)
    assert sequence(7) != sequence(8)
    assert len(sequence(2**64 - 1)) == 30  # any uint64 is a seed


@pytest.mark.parametrize("temperature", [1e-20, 1e-38, 1e-45])
def test_next_to_no_temperature_takes_the_likeliest(temperature: float) -> None:
    scores = 20 * logits().flip(0)  # the largest is not the first that becomes infinite
    assert set(draw(scores, sampling(temperature=temperature, top_p=1.0, seed=1), 20)) == {int(scores.argmax())}


def test_without_top_k_and_top_p_the_likeliest_is_taken_whatever_the_temperature() -> None:
    scores = logits(8)
    assert set(draw(scores, sampling(temperature=50.0, seed=1), 20)) == {int(scores.argmax())}
    assert set(draw(scores, sampling(temperature=0.0, top_p=0.9, seed=1), 20)) == {int(scores.argmax())}


def test_a_multi_token_bad_word_is_only_stopped_at_its_last_token() -> None:
    scores, setting = torch.zeros(VOCAB), sampling(bad_words=[(5, 6, 7)])
    assert torch.isfinite(process(scores, setting, [], [5])).all()
    assert torch.isfinite(process(scores, setting, [], [6])).all()
    assert process(scores, setting, [], [1, 5, 6])[7] == -math.inf
    assert process(scores, setting, [5], [6])[7] == -math.inf  # its beginning may stand in the prompt


def test_log_probs_are_of_the_full_distribution_and_of_the_drawn_token() -> None:
    scores = logits(9)
    state = SequenceState(sampling(top_k=2, temperature=0.5, seed=1, return_log_probs=True, num_top_logprobs=3))
    one = Sampler(state)
    drawn = [int(one.process(scores.clone(), [], []).argmax()) for _ in range(5)]
    expected = (scores / 0.5).log_softmax(0)
    np.testing.assert_allclose(state.log_probs, expected[drawn].numpy(), rtol=1e-5)
    values, ids = expected.topk(3)
    for top_ids, top_log_probs in state.top_logprobs:
        assert top_ids.tolist() == ids.tolist()
        np.testing.assert_allclose(top_log_probs, values.numpy(), rtol=1e-5)


def test_fewer_top_log_probs_where_fewer_tokens_are_possible() -> None:
    bias = np.full(VOCAB, -np.inf, np.float32)
    bias[[4, 7]] = 0
    state = SequenceState(sampling(embedding_bias=bias, num_top_logprobs=3))
    Sampler(state).process(logits(1), [], [])
    [(ids, log_probs)] = state.top_logprobs
    assert (sorted(ids[:2].tolist()), ids[2]) == ([4, 7], -1)
    np.testing.assert_allclose(np.exp(log_probs).sum(), 1, rtol=1e-5)


def test_a_bias_moves_the_choice_and_forbids() -> None:
    scores = logits(2)
    likeliest, other = scores.argsort(descending=True)[:2].tolist()
    bias = np.zeros(VOCAB, np.float32)
    bias[likeliest] = -np.inf
    assert set(draw(scores, sampling(embedding_bias=bias, temperature=9.0), 3)) == {other}
    assert likeliest not in draw(scores, sampling(embedding_bias=bias, top_p=1.0, temperature=99.0), 200)


@pytest.mark.parametrize("min_p", [0.3, 0.61, 1.0])
def test_min_p_drops_what_is_unlikely_beside_the_likeliest(min_p: float) -> None:
    probabilities = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05])
    expected = {i for i, p in enumerate(probabilities.tolist()) if p >= min_p * 0.4 * 0.999}
    assert set(draw(probabilities.log(), sampling(top_p=1.0, min_p=min_p, seed=5), 400)) == expected


def test_bans_that_leave_nothing_are_a_failure_and_not_nonsense() -> None:
    bias = np.full(VOCAB, -np.inf, np.float32)
    bias[5] = 0
    state = SequenceState(sampling(embedding_bias=bias, bad_words=[(5,)]))
    Sampler(state).process(logits(), [], [])
    assert state.failure is not None and "exclude each other" in state.failure


@settings(deadline=None)
@given(
    top_k=st.none() | st.integers(0, 2**31 - 1),
    top_p=st.none() | st.floats(1e-30, 1.0),
    temperature=st.floats(0.0, allow_nan=False),
    repetition=st.floats(1e-30, allow_nan=False),
    presence=st.floats(),
    frequency=st.floats(),
    min_tokens=st.integers(0, 2**31 - 1),
    words=st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=3).map(tuple), max_size=3),
    seed=st.integers(0, 2**64 - 1),
    end_id=st.integers(-1, VOCAB - 1),
    min_p=st.floats(0.0, 1.0),
    bias=st.none() | st.lists(st.floats(max_value=100, width=32, allow_nan=False), min_size=VOCAB, max_size=VOCAB),
    top=st.integers(0, 20),
)
def test_no_accepted_setting_raises(
    top_k: int | None,
    top_p: float | None,
    temperature: float,
    repetition: float,
    presence: float,
    frequency: float,
    min_tokens: int,
    words: list[tuple[int, ...]],
    seed: int,
    end_id: int,
    min_p: float,
    bias: list[float] | None,
    top: int,
) -> None:
    """An exception here would end the generation thread, and with it every request."""
    setting = SamplingParams(
        end_id,
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
        repetition,
        presence,
        frequency,
        min_tokens,
        words,
        None if bias is None else np.array(bias, np.float32),
        return_log_probs=True,
        num_top_logprobs=top,
    )
    one = sampler(setting)
    for _ in range(2):
        assert 0 <= int(one.process(logits(), [1, 2, 1, VOCAB + 9], [2, 3]).argmax()) < VOCAB


def test_greedy_requests_need_no_work_on_their_scores() -> None:
    assert sampling(top_k=1, temperature=0.7).plain
    assert not replace(sampling(), min_tokens=1).plain
    assert not sampling(top_p=0.5).plain
