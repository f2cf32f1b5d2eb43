"""HiCo merging against loops, and the properties that the answer of the model hangs on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from internvideo_server.vit.vision.merging import average, choose, closest_odd, merge_metric, merge_tokens, metric_of


def loop_merge(tokens: Tensor, heads: int, target: int) -> tuple[list[list[float]], float]:
    """One group in plain Python floats; also the smallest gap between the best and the second best similarity."""
    x = [[float(v) for v in token] for token in tokens]
    sizes = [1.0] * len(x)
    gap = math.inf
    while len(x) > target:
        chunk = len(x[0]) // heads
        metric = [[sum(t[h * chunk + i] for h in range(heads)) / heads for i in range(chunk)] for t in x]
        units = [[v / math.sqrt(sum(w * w for w in m)) for v in m] for m in metric]
        sums = [[v * sizes[i] for v in x[i]] for i in range(1, len(x), 2)]
        weights = sizes[1::2]
        for even in range(0, len(x), 2):
            scores = [sum(a * b for a, b in zip(units[even], unit, strict=True)) for unit in units[1::2]]
            best = scores.index(max(scores))
            ranked = sorted(scores)
            gap = min(gap, ranked[-1] - ranked[-2])
            sums[best] = [s + v * sizes[even] for s, v in zip(sums[best], x[even], strict=True)]
            weights[best] += sizes[even]
        x = [[s / w for s in row] for row, w in zip(sums, weights, strict=True)]
        sizes = weights
    return x, gap


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_merging_equals_loops_over_tokens(heads: int) -> None:
    tokens = torch.randn(2, 64, 24, generator=torch.Generator().manual_seed(3))
    merged = merge_tokens(tokens, heads, 8)
    for group, result in zip(tokens, merged, strict=True):
        expected, gap = loop_merge(group, heads, 8)
        assert gap > 1e-5, "pick another seed: float32 may choose otherwise than float64 here"
        torch.testing.assert_close(result, torch.tensor(expected), atol=1e-5, rtol=0)


@given(st.data())
@settings(deadline=None)
def test_equal_similarities_go_to_the_first_odd_token(data: st.DataObject) -> None:
    # One-hot tokens have similarities of exactly 0 and 1, so every choice is a tie but where one channel matches.
    half, channels = data.draw(st.integers(2, 12)), data.draw(st.integers(1, 5))
    places = data.draw(st.lists(st.integers(0, channels - 1), min_size=2 * half, max_size=2 * half))
    x = torch.eye(channels)[places].repeat(1, 2).unsqueeze(0)  # two equal heads
    odd = places[1::2]
    expected = [odd.index(place) if place in odd else 0 for place in places[0::2]]
    assert closest_odd(metric_of(x, heads=2)).tolist() == [expected]


@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_every_token_counts_once(groups: int, rounds: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(groups, 4 * 2**rounds, 6, generator=generator)
    choices = choose(metric_of(tokens, 3), 4)
    # Averages of one-hot tokens are each token's share in each place.
    shares = average(torch.eye(tokens.shape[1]).expand(groups, -1, -1), choices, 4)  # [groups, 4, P]
    sizes = 1 / shares.amax(2, keepdim=True)
    assert torch.equal((shares * sizes).round().sum(1), torch.ones(groups, tokens.shape[1]))
    torch.testing.assert_close((merge_tokens(tokens, 3, 4) * sizes).sum(1), tokens.sum(1), atol=1e-4, rtol=1e-4)


def test_the_metric_of_merged_tokens_is_the_merged_metric() -> None:
    tokens = torch.randn(2, 32, 12, generator=torch.Generator().manual_seed(9))
    metric = metric_of(tokens, 3)
    choices = choose(metric, 8)
    for choice in choices:
        metric = merge_metric(metric, choice)
    unit = torch.nn.functional.normalize(metric, dim=2)
    expected = torch.nn.functional.normalize(metric_of(average(tokens, choices, 8), 3), dim=2)
    torch.testing.assert_close(unit, expected, atol=1e-6, rtol=0)


def test_groups_do_not_touch_each_other() -> None:
    tokens = torch.randn(3, 128, 16, generator=torch.Generator().manual_seed(5))
    together = merge_tokens(tokens, 4, 8)
    other = tokens.clone()
    other[1] = 7 * tokens[0]
    assert torch.equal(merge_tokens(other, 4, 8)[[0, 2]], together[[0, 2]])


def test_choices_of_bfloat16_tokens_are_made_in_float32() -> None:
    tokens = torch.randn(4, 256, 64, generator=torch.Generator().manual_seed(7)).to(torch.bfloat16)
    merged = merge_tokens(tokens, 4, 16)
    assert merged.dtype == torch.float32
    assert torch.equal(merged, merge_tokens(tokens.to(torch.float32), 4, 16))
    # The test has teeth: similarities in bfloat16 choose otherwise.
    differing = closest_odd(metric_of(tokens, 4).to(torch.bfloat16)) != closest_odd(metric_of(tokens, 4))
    assert differing.float().mean() > 0.01


def test_no_round_leaves_the_tokens_alone() -> None:
    tokens = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(merge_tokens(tokens, 2, 8), tokens)
