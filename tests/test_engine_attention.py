"""Attention over the paged cache against plain attention, on ragged batches."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_server.engine._attention import PagedCache, _join
from internvideo_server.engine._graphs import DecodeGraphs
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


@settings(deadline=None)
@given(cases(decoding=True))
def test_pages_joined_by_their_log_sum_exp_are_the_whole(case: Case) -> None:
    """What the flash path does with the pages' outputs, here with outputs made by hand."""
    step = case.decoding(spare_pages=1)
    expected = step.attend(0, case.query, case.key, case.value, SCALE)
    grouped = case.query.view(len(case.new), 1, case.kv_heads, case.group, HEAD_DIM)
    index = step._table[:, :, None] * case.page_size + torch.arange(case.page_size)  # [requests, pages, page_size]
    key, value = (side[0][index].transpose(2, 3) for side in (case.cache.keys, case.cache.values))
    scores = (grouped @ key.transpose(-1, -2)) * SCALE  # [requests, pages, kv_heads, group, page_size]
    seen = torch.arange(case.page_size) < step._used[:, :, None]
    scores = scores.masked_fill(~seen[:, :, None, None], -torch.inf)
    out = scores.softmax(dim=-1).nan_to_num() @ value  # [requests, pages, kv_heads, group, head_dim]
    lse = scores.logsumexp(dim=-1).permute(2, 0, 1, 3)  # [kv_heads, requests, pages, group]
    lse = lse.masked_fill((step._used == 0)[:, :, None], torch.inf)  # what flash attention says of a page without keys
    joined = _join(out.transpose(2, 3), lse, step._used)
    torch.testing.assert_close(joined, expected, rtol=1e-5, atol=1e-5)


def test_without_cuda_a_step_is_run_as_it_is() -> None:
    cache = PagedCache([torch.zeros(8, 1, 4)], [torch.zeros(8, 1, 4)], page_size=2, trash_page=3)
    seen = []

    def decode(ids: torch.Tensor, positions: torch.Tensor, step: object) -> torch.Tensor:
        seen.append((ids.tolist(), positions.tolist()))
        return torch.zeros(len(ids), 5)

    graphs = DecodeGraphs(decode, cache, max_requests=4, max_pages=3)
    logits = graphs(torch.tensor([7, 8]), torch.tensor([0, 3]), torch.tensor([[0, -1, -1], [1, 2, -1]]), longest=4)
    assert seen == [([7, 8], [0, 3])]
    assert logits.shape == (2, 5)
