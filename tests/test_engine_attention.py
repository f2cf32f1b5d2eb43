"""Attention over the paged cache against plain attention, on ragged batches."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.paged_attention import HEAD_DIM, Case

SCALE = HEAD_DIM**-0.5


@st.composite
def cases(draw: st.DrawFn, *, decoding: bool = False, prompts: bool = False) -> Case:
    requests = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(1, 70), min_size=requests, max_size=requests))
    if decoding:
        new = [1] * requests
    elif prompts:
        new = lengths
    else:
        new = [draw(st.integers(1, length)) for length in lengths]
    page_size, kv_heads, group = draw(st.sampled_from([4, 16, 32])), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return Case(lengths, new, page_size, kv_heads, group, draw(st.integers(0, 4)), draw(st.integers(0, 99)))


@settings(deadline=None)
@given(cases())
def test_packed_requests_see_their_own_keys_up_to_their_own_place(case: Case) -> None:
    out = case.packed().attend(0, case.query, case.key, case.value, SCALE)
    torch.testing.assert_close(out, case.expected(), rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(cases(prompts=True))
def test_whole_prompts_need_not_read_the_cache(case: Case) -> None:
    step = case.packed()
    assert not step.read.numel()
    out = step.attend(0, case.query, case.key, case.value, SCALE)
    torch.testing.assert_close(out, case.expected(), rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(cases(decoding=True), st.integers(0, 3))
def test_decoding_reads_the_pages_of_the_table_and_no_others(case: Case, spare_pages: int) -> None:
    out = case.decoding(spare_pages).attend(0, case.query, case.key, case.value, SCALE)
    torch.testing.assert_close(out, case.expected(), rtol=1e-5, atol=1e-5)
