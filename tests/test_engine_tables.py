"""Prompt tables: virtual ids, slots and rows, without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from internvideo_server.engine import _tables
from internvideo_server.engine._tables import IdRanges, PromptTables

VOCAB, HIDDEN, ROWS = 50, 4, 32


def make_tables(slots: int = 2, max_rows: int = ROWS) -> PromptTables:
    torch.manual_seed(0)
    return PromptTables(nn.Embedding(VOCAB, HIDDEN), slots=slots, max_rows=max_rows).requires_grad_(False)


def virtual(*rows: int) -> np.ndarray:
    return np.array([VOCAB + row for row in rows], np.int32)


def raising(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail


def embed(tables: PromptTables, ids: list[int]) -> torch.Tensor:
    tables.apply_changes()
    return tables(torch.tensor([ids]))[0]  # [N, hidden]


def test_rows_of_the_table_stand_in_for_ids_beyond_the_vocabulary() -> None:
    tables, table = make_tables(), torch.randn(6, HIDDEN)
    prompt = np.concatenate([[3], virtual(2, 0, 5, 2), [7]]).astype(np.int32)
    _, ids = tables.admit(prompt, [0, 9, 9, 9, 9, 0], table)
    assert ids[0] == 3 and ids[5] == 7 and min(ids[1:5]) >= VOCAB
    expected = torch.stack([tables.weight[3], table[2], table[0], table[5], table[2], tables.weight[7]])
    assert torch.equal(embed(tables, ids), expected)


def test_equal_content_has_equal_ids_and_other_content_never() -> None:
    tables = make_tables(slots=4)
    prompts = [tables.admit(virtual(0, 1, 2), [content] * 3, torch.randn(3, HIDDEN))[1] for content in (5, 6, 5, 2**64 - 1)]
    assert prompts[0] == prompts[2]
    assert len({token for prompt in (prompts[0], prompts[1], prompts[3]) for token in prompt}) == 9


@pytest.mark.parametrize("other", range(4))
def test_contents_that_differ_in_one_word_of_four_share_nothing(other: int) -> None:
    tables, first, second = make_tables(), torch.randn(8, HIDDEN), torch.randn(8, HIDDEN)
    words = [11, 12, 13, 14]
    nearly = [*words[:other], 99, *words[other + 1 :]]
    _, ids_1 = tables.admit(virtual(*range(8)), words * 2, first)
    _, ids_2 = tables.admit(virtual(*range(8)), nearly * 2, second)
    assert not set(ids_1) & set(ids_2)
    assert torch.equal(embed(tables, ids_1 + ids_2), torch.cat([first, second]))


def test_a_content_has_one_span_however_many_words_name_it() -> None:
    tables, rows = make_tables(), list(range(ROWS))
    _, ids = tables.admit(virtual(*rows), [11, 12, 13, 14] * (ROWS // 4), torch.randn(ROWS, HIDDEN))
    assert ids == list(range(ids[0], ids[0] + ROWS))


def test_content_without_an_id_is_never_shared() -> None:
    tables = make_tables(slots=3)
    table = torch.randn(2, HIDDEN)
    seen = [tables.admit(virtual(0, 1), extra, table)[1] for extra in (None, None, [0, 0])]
    assert len({token for prompt in seen for token in prompt}) == 6


def test_other_content_under_equal_rows_in_two_slots_stays_apart() -> None:
    tables = make_tables()
    first, second = torch.randn(3, HIDDEN), torch.randn(3, HIDDEN)
    _, ids_1 = tables.admit(virtual(0, 1, 2), [1] * 3, first)
    _, ids_2 = tables.admit(virtual(0, 1, 2), [2] * 3, second)
    assert torch.equal(embed(tables, ids_1 + ids_2), torch.cat([first, second]))


def test_several_contents_in_one_prompt() -> None:
    tables, table = make_tables(), torch.randn(32, HIDDEN)
    rows = np.arange(32)
    _, ids = tables.admit(virtual(*rows), (rows // 5 + 1).tolist(), table)  # some four tokens are on a border
    assert torch.equal(embed(tables, ids), table)


def test_a_table_may_be_full_of_different_images() -> None:
    tables, table = make_tables(max_rows=20 * 64), torch.randn(20 * 64, HIDDEN)
    rows = np.arange(20 * 64)
    _, ids = tables.admit(virtual(*rows), (rows // 64 + 1).tolist(), table)
    assert torch.equal(embed(tables, ids), table)


def test_rows_that_cannot_be_taken_take_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = make_tables(slots=1)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(_tables.np, "concatenate", raising(RuntimeError("CUDA out of memory")))
        tables.admit(virtual(0), [1], torch.zeros(1, HIDDEN))
    tables.admit(virtual(0), [1], torch.zeros(1, HIDDEN))


def test_more_contents_than_a_slot_can_hold_are_refused_and_take_no_slot() -> None:
    tables = make_tables(slots=1, max_rows=4 * 17)
    rows = range(4 * 17)
    with pytest.raises(ValueError, match="17 different contents in one prompt table, at most 16"):
        tables.admit(virtual(*rows), [row // 4 + 1 for row in rows], torch.zeros(4 * 17, HIDDEN))
    tables.admit(virtual(0), [1], torch.zeros(1, HIDDEN))


def test_contents_that_share_rows_cannot_reach_into_the_next_slot() -> None:
    tables = make_tables()
    rows = list(range(ROWS)) * 2
    with pytest.raises(ValueError, match=f"{2 * ROWS} rows together, at most {ROWS}"):
        tables.admit(virtual(*rows), [1] * ROWS + [2] * ROWS, torch.zeros(ROWS, HIDDEN))


def test_an_id_outside_the_table_is_refused_and_takes_no_slot() -> None:
    tables = make_tables(slots=1)
    for rows in (0, 2):
        with pytest.raises(ValueError, match=f"row 2 of a table of {rows} rows"):
            tables.admit(virtual(0, 2), [1, 1], torch.zeros(rows, HIDDEN))
    slot, _ = tables.admit(virtual(0, 1), [1, 1], torch.zeros(2, HIDDEN))
    assert slot == 0


def test_a_slot_is_used_again_with_the_new_rows() -> None:
    tables = make_tables(slots=1)
    for content in range(1, 5):
        table = torch.randn(ROWS, HIDDEN)
        slot, ids = tables.admit(virtual(*range(ROWS)), [content] * ROWS, table)
        assert torch.equal(embed(tables, ids), table)
        tables.release(slot)


def test_a_released_request_keeps_its_rows_until_the_next_forward_pass() -> None:
    tables = make_tables(slots=1)
    table = torch.randn(1, HIDDEN)
    slot, ids = tables.admit(virtual(0), [1], table)
    assert torch.equal(embed(tables, ids), table)
    tables.release(slot)  # queued: what a running pass sees does not change
    assert tables._ends.max() == ids[0] + 1
    assert not torch.equal(embed(tables, ids), table)


def test_ids_begin_again_before_int32_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "_LAST_ID", VOCAB + 10)
    ranges = IdRanges(VOCAB)
    assert [ranges.start_of((content,), 5) for content in (1, 2, 1)] == [VOCAB, VOCAB + 5, VOCAB]
    assert ranges.start_of((3,), 5) == VOCAB
    assert ranges.start_of((1,), 5) == VOCAB + 5  # forgotten with the rest


def test_long_forgotten_content_gets_a_new_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "_REMEMBERED_RANGES", 2)
    ranges = IdRanges(VOCAB)
    starts = [ranges.start_of((content,), 1) for content in (1, 2, 1, 3)]  # 2 was asked for longest ago
    assert ranges.start_of((1,), 1) == starts[0]
    assert ranges.start_of((2,), 1) not in starts


@settings(deadline=None)
@given(st.lists(st.tuples(st.tuples(st.integers(0, 2), st.integers(1, 2)), st.integers(1, 6)), max_size=40))
def test_two_contents_never_overlap(asked: list[tuple[tuple[int, int], int]]) -> None:
    ranges = IdRanges(VOCAB)
    owner: dict[int, tuple[tuple[int, int], int]] = {}
    for number, (content, rows) in enumerate(asked):
        start = ranges.start_of(content, rows)
        key = (content, rows) if all(content) else ((-number - 1, 0), rows)
        for token in range(start, start + rows):
            assert owner.setdefault(token, key) == key
