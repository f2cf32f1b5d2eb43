"""What ends an answer, as preprocessing tells the engine."""

from __future__ import annotations

import pytest

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.preprocessing.chat import Endings, word_list

OWN = Endings(end_id=7, pad_id=2, stop_words=((2,), (6,)))


def test_further_ids_join_the_models_own() -> None:
    asked = OWN.asked([40, 41], 100, ignore_eos=False)
    assert (asked.end_id, asked.stop_words) == (7, ((2,), (6,), (40,), (41,)))
    assert OWN.asked([], 100, ignore_eos=False) == OWN


def test_ignoring_the_end_leaves_only_what_was_asked_for() -> None:
    asked = OWN.asked([40], 100, ignore_eos=True)
    assert (asked.end_id, asked.stop_words) == (-1, ((40,),))
    assert word_list(OWN.asked([], 100, ignore_eos=True).stop_words).shape == (2, 0)


@pytest.mark.parametrize(("ids", "text"), [([100], "within 0 .. 99, got 100"), ([-1], "got -1"), ([5] * 65, "at most 64")])
def test_ids_that_no_engine_takes_are_refused_by_name(ids: list[int], text: str) -> None:
    with pytest.raises(ServingError, match=text) as refusal:
        OWN.asked(ids, 100, ignore_eos=False)
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.INVALID_ARGUMENT, "stop_token_ids")
