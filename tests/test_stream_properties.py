"""Answers however their tokens arrive: any split, any stop strings; log probabilities end where the text ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from internvideo_client.adapter.generation._sequence import AnswerSequence
from internvideo_client.detokenizer import TokenDecoder, Vocabulary
from internvideo_client.protocol import ChatCompletionRequest, model_of
from internvideo_client.triton import TokenBatch
from tests.fake_triton import PIECES, byte_ids, make_tokenizer, piece

VOCABULARY = Vocabulary(make_tokenizer())
WORDS = [piece(text) for text in PIECES]
TOKENS = st.lists(
    st.one_of(st.sampled_from(WORDS), st.sampled_from(byte_ids("é红 \xff".encode() + b"\xff")), st.just(3)), max_size=24
)
STOPS = st.lists(st.text("Helo wrdENtp.红é", min_size=1, max_size=4), max_size=4)


def whole_text(ids: list[int]) -> str:
    decoder = TokenDecoder(VOCABULARY)
    return "".join(map(decoder.push, ids)) + decoder.flush()


def expected(ids: list[int], stop: list[str], include: bool) -> str:
    """By the definition: the text up to the stop string that is complete first."""
    text = whole_text(ids)
    for end in range(len(text) + 1):
        if found := [each for each in stop if text[:end].endswith(each)]:
            return text[: end if include else end - max(map(len, found))]
    return text


def request(**fields: Any) -> ChatCompletionRequest:
    return model_of(ChatCompletionRequest, {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields})


def batches(ids: list[int], cuts: list[int]) -> list[list[int]]:
    ends = sorted({min(cut, len(ids)) for cut in cuts} | {0, len(ids)})
    return [ids[start:end] for start, end in pairwise(ends)]


def answered(ids: list[int], cuts: list[int], **fields: Any) -> tuple[str, list[Any], AnswerSequence]:
    sequence = AnswerSequence(VOCABULARY, request(**fields), want_entries=True)
    pieces = [sequence.push(TokenBatch(part, [-0.5] * len(part))) for part in batches(ids, cuts)]
    pieces.append(sequence.finish())
    return "".join(each.text for each in pieces), [entry for each in pieces for entry in each.entries], sequence


@given(TOKENS, STOPS, st.booleans(), st.lists(st.integers(0, 24), max_size=6))
def test_an_answer_is_the_same_however_it_is_cut(ids: list[int], stop: list[str], include: bool, cuts: list[int]) -> None:
    fields = {"stop": stop, "include_stop_str_in_output": include}
    text, entries, sequence = answered(ids, cuts, **fields)
    once, entries_once, sequence_once = answered(ids, [], **fields)
    assert (text, sequence.stop_reason) == (once, sequence_once.stop_reason)
    assert [entry.token_id for entry in entries] == [entry.token_id for entry in entries_once]
    assert text == expected(ids, stop, include)


@given(TOKENS, STOPS, st.lists(st.integers(0, 24), max_size=6))
def test_log_probabilities_are_of_the_tokens_whose_text_is_told(ids: list[int], stop: list[str], cuts: list[int]) -> None:
    text, entries, sequence = answered(ids, cuts, stop=stop)
    assert [entry.token_id for entry in entries] == ids[: len(entries)]
    assert all(entry.at <= entry.end for entry in entries)
    if sequence.stopped:
        assert all(entry.at < len(text) for entry in entries)
        assert not entries or entries[-1].end >= len(text)
    else:
        assert len(entries) == len(ids)


@given(TOKENS, STOPS, st.lists(st.integers(0, 24), max_size=6))
def test_nothing_leaves_that_a_stop_string_would_take_back(ids: list[int], stop: list[str], cuts: list[int]) -> None:
    sequence, told = AnswerSequence(VOCABULARY, request(stop=stop), want_entries=False), ""
    final = expected(ids, stop, include=False)
    for part in batches(ids, cuts):
        told += sequence.push(TokenBatch(part)).text
        assert final.startswith(told)
