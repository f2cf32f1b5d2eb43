"""Which virtual tokens show the same content, by extra ids alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_server.engine.contents import contents_of

KEYS = st.tuples(*[st.integers(1, 3)] * 4)  # small, so that many agree in some of their words
MEDIA = st.lists(st.tuples(KEYS, st.integers(1, 3)), max_size=6)  # each: four words, frames / 4


@settings(deadline=None)
@given(MEDIA)
def test_tokens_have_the_same_content_only_where_all_four_words_of_their_media_agree(
    media: list[tuple[tuple[int, ...], int]],
) -> None:
    keys = [key for key, groups in media for _ in range(64 * groups)]
    extra = [word for key, groups in media for word in key * (16 * groups)]
    contents, index = contents_of(extra, np.arange(len(extra)))
    assert [tuple(contents[i].tolist()) for i in index] == keys
    assert len(contents) == len(set(keys))


def test_text_between_two_frames_changes_nothing() -> None:
    extra = np.array([0, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0], np.uint64)
    contents, index = contents_of(extra, np.flatnonzero(extra))
    assert contents.tolist() == [[1, 2, 3, 4]]
    assert index.tolist() == [0] * 8


@pytest.mark.parametrize("rows", [1, 3, 4, 6, 64])
def test_one_constant_id_is_one_content_however_long(rows: int) -> None:
    contents, index = contents_of([7] * rows, np.arange(rows))
    assert contents.tolist() == [[7] * 4]
    assert index.tolist() == [0] * rows


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20))
def test_equal_contents_mean_equal_ids(one: list[int], other: list[int]) -> None:
    """Whatever a client of its own sends: each token's own extra id is a word of its content, at the token's place."""
    for extra in (one, other):
        contents, index = contents_of(extra, np.arange(len(extra)))
        assert [int(contents[i][place % 4]) for place, i in enumerate(index)] == extra


def test_without_extra_ids_the_content_has_no_name() -> None:
    contents, index = contents_of(None, np.arange(5))
    assert contents.tolist() == [[0] * 4]
    assert index.tolist() == [0] * 5


def test_a_prompt_of_text_alone_has_no_content() -> None:
    contents, index = contents_of([0, 0], np.array([], np.int64))
    assert contents.shape == (0, 4)
    assert index.shape == (0,)
