"""Tensors of a request -> checked values, or the refusal that NVIDIA's backend gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_server.engine import GenerationRequest, Guide, GuideType, RefusedRequestError, parse_request
from internvideo_server.engine._generation import Generation
from internvideo_server.engine.sequence_state import SequenceState
from internvideo_server.limits import EngineLimits

LIMITS = EngineLimits(
    dtype="float32",
    vocab_size=100,
    hidden_size=8,
    max_batch_size=2,
    max_input_len=63,
    max_seq_len=64,
    max_num_tokens=64,
    max_prompt_embedding_table_size=32,
)


def tensors(ids: int | list[int] = 5, output_len: int = 10, **more: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A request's host tensors; ``None`` leaves one out."""
    prompt = list(range(ids)) if isinstance(ids, int) else ids
    given_tensors = {
        "input_ids": np.array([prompt], np.int32),
        "input_lengths": np.array([[len(prompt)]], np.int32),
        "request_output_len": np.array([[output_len]], np.int32),
        **{name: value if isinstance(value, np.ndarray | None) else np.array([[value]]) for name, value in more.items()},
    }
    return {name: value for name, value in given_tensors.items() if value is not None}


def parse(
    given_tensors: dict[str, np.ndarray[Any, Any]], table: torch.Tensor | None = None, *, reuse: bool = True
) -> GenerationRequest:
    return parse_request(given_tensors, table, LIMITS, exclude_input=True, reuse=reuse)


def words(*given_words: list[int]) -> np.ndarray[Any, Any]:
    flat = [token for word in given_words for token in word]
    ends = np.cumsum([len(word) for word in given_words], dtype=np.int32)
    return np.array([[flat, [*ends, *[-1] * (len(flat) - len(ends))]]], np.int32)  # [1, 2, L]


def guide(kind: bytes, text: bytes | None = None) -> dict[str, np.ndarray[Any, Any] | None]:
    value = None if text is None else np.array([[text]], object)
    return {"guided_decoding_guide_type": np.array([[kind]], object), "guided_decoding_guide": value}


def test_defaults_are_those_of_the_backend() -> None:
    request = parse(tensors([4, 5, 6]))
    assert request.input_ids.tolist() == [4, 5, 6] and request.input_ids.dtype == np.int32
    assert request.extra_ids is None and request.table.shape == (0, LIMITS.hidden_size)
    assert (request.streaming, request.exclude_input, request.return_num_input_tokens) == (False, True, False)
    assert request.sampling.plain and request.sampling.end_id == -1
    assert request.stop_words == []


def test_a_request_without_a_seed_gets_its_own() -> None:
    assert parse(tensors()).sampling.seed != parse(tensors()).sampling.seed


def test_the_requests_own_exclude_input_wins() -> None:
    assert parse(tensors(exclude_input_in_output=False)).exclude_input is False


@pytest.mark.parametrize(("ids", "asked", "given_len"), [(5, 10, 10), (5, 59, 59), (5, 60, 59), (63, 10**6, 1), (63, 1, 1)])
def test_output_length_is_clamped_to_the_context(ids: int, asked: int, given_len: int) -> None:
    assert parse(tensors(ids, asked)).max_new_tokens == given_len


def test_input_lengths_is_not_read_for_a_single_prompt() -> None:
    assert len(parse(tensors(5, input_lengths=3)).input_ids) == 5


@pytest.mark.parametrize(
    ("request_tensors", "message"),
    [
        (tensors(input_ids=None), "input_ids or encoder_input_features is not present"),
        (tensors(request_output_len=None), "request_output_len is not present in the request"),
        (tensors(output_len=0), "mMaxNewTokens > 0"),
        (tensors(output_len=-1), "mMaxNewTokens > 0"),
        (tensors([]), "!mInputTokenIds.empty()"),
        (tensors([3, -1]), "must not be negative, got -1"),
        (tensors(input_ids=np.zeros((2, 5), np.int32)), "one prompt a request, not 2"),
        (tensors(64), "Prompt length (64) exceeds maximum input length (63)"),
        (tensors(end_id=100), "EndId (100) is not within acceptable range [-1, 100)"),
        (tensors(end_id=-2), "EndId (-2) is not within acceptable range"),
        (tensors(temperature=-0.5), "temperature.value() >= 0"),
        (tensors(temperature=np.array([[np.nan]])), "temperature.value() >= 0"),
        (tensors(runtime_top_k=-1), "topK.value() >= 0"),
        (tensors(runtime_top_p=1.5), "topP.value() <= 1"),
        (tensors(repetition_penalty=0.0), "repetitionpenalty.value() > 0"),
        (tensors(min_tokens=-1), "minTokens.value() >= 0"),
        (tensors(temperature=np.array([[0.5, 0.5]])), "Invalid size for tensor temperature"),
        (tensors(beam_width=2), "no other beam_width than 1"),
        (tensors(num_return_sequences=0), "numReturnSequences.value() > 0"),
        (tensors(num_return_sequences=17), "at most 16 are possible"),
        (tensors(min_p=-0.1), "[INVALID_ARGUMENT param=min_p] min_p must be within 0 .. 1"),
        (tensors(min_p=np.array([[np.nan]])), "min_p must be within 0 .. 1"),
        (tensors(num_top_logprobs=21), "num_top_logprobs must be within 0 .. 20, got 21"),
        (tensors(num_top_logprobs=-1), "got -1"),
        (tensors(return_perf_metrics=True), "no other return_perf_metrics than False"),
        (tensors(return_context_logits=True), "does not support the input return_context_logits"),
        (tensors(embedding_bias=np.zeros((1, 99), np.float32)), "embedding_bias has 99 values, the vocabulary 100 tokens"),
        (tensors(embedding_bias=np.full((1, 100), np.nan, np.float32)), "must be finite, or -inf"),
        (tensors(embedding_bias=np.full((1, 100), -np.inf, np.float32)), "must be finite, or -inf"),
        (tensors(stop_words_list=np.array([[[5, 6], [3, -1]]], np.int32)), "must not have out-of-bound offsets"),
        (tensors(stop_words_list=np.array([[[5, 6], [2, 1]]], np.int32)), "must not have non-increasing offsets"),
        (tensors(bad_words_list=np.array([[[5, 6], [-1, 2]]], np.int32)), "must not have additional -1s"),
        (tensors(bad_words_list=np.array([[5, 6, 1]], np.int32)), "must not have odd length"),
        (tensors(**guide(b"regex")), "a guide of the type regex is needed"),
        (tensors(**guide(b"regex", b"\xff")), "guided_decoding_guide is not UTF-8"),
        (tensors(**guide(b"no such type", b"")), "one of json, json_schema, regex, ebnf_grammar, not 'no such type'"),
    ],
)
def test_refusals(request_tensors: dict[str, np.ndarray[Any, Any]], message: str) -> None:
    with pytest.raises(RefusedRequestError) as refusal:
        parse(request_tensors)
    assert message in str(refusal.value)


def test_what_has_no_effect_in_the_backend_is_taken() -> None:
    parse(tensors(pad_id=2, prompt_vocab_size=16, beam_width=1, num_return_sequences=1, return_perf_metrics=False))


def test_guides() -> None:
    assert parse(tensors()).guide is None
    assert parse(tensors(**guide(b"json"))).guide == Guide(GuideType.JSON, "")
    assert parse(tensors(**guide(b"json", b"ignored"))).guide == Guide(GuideType.JSON, "")
    assert parse(tensors(**guide(b"regex", "[a-zä]+".encode()))).guide == Guide(GuideType.REGEX, "[a-zä]+")


def test_several_answers_biases_and_top_log_probs() -> None:
    bias = np.arange(100, dtype=np.float32)[None]
    request = parse(tensors(num_return_sequences=16, embedding_bias=bias, num_top_logprobs=20, min_p=0.25))
    assert (request.num_sequences, request.sampling.num_top_logprobs, request.sampling.min_p) == (16, 20, 0.25)
    assert request.sampling.embedding_bias is not None and request.sampling.embedding_bias.tolist() == bias[0].tolist()


def test_top_p_of_zero_or_less_is_dropped() -> None:
    assert parse(tensors(runtime_top_p=0.0)).sampling.top_p is None


def test_word_lists() -> None:
    request = parse(tensors(stop_words_list=words([5, 6], [9]), bad_words_list=words()))
    assert request.stop_words == [(5, 6), (9,)]
    assert request.sampling.bad_words == []


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4), max_size=5))
def test_any_word_list_comes_back(given_words: list[list[int]]) -> None:
    request = parse(tensors(stop_words_list=words(*given_words)))
    assert request.stop_words == [tuple(word) for word in given_words]


TABLE = torch.zeros(1, 4, LIMITS.hidden_size)


def test_the_table_needs_extra_ids_where_the_cache_is_reused() -> None:
    for extra_ids in (None, np.ones((1, 4), np.uint64)):  # missing; of the wrong length, which is dropped without a word
        with pytest.raises(RefusedRequestError, match="Input token extra ids must be provided"):
            parse(tensors(prompt_table_extra_ids=extra_ids), TABLE)
        assert parse(tensors(prompt_table_extra_ids=extra_ids), TABLE, reuse=False).extra_ids is None
    extra = parse(tensors(prompt_table_extra_ids=np.ones((1, 5), np.uint64)), TABLE).extra_ids
    assert extra is not None and extra.tolist() == [1] * 5


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.zeros(1, 17, 8), r"Prompt vocab size 17 is larger than max prompt vocab size of 16"),
        (torch.zeros(1, 4, 8, dtype=torch.bfloat16), "data type doesn't match model weight data type"),
        (torch.zeros(1, 4, 9), "9 columns, the engine 8"),
    ],
)
def test_tables_that_would_end_every_request_are_refused(table: torch.Tensor, message: str) -> None:
    with pytest.raises(RefusedRequestError, match=message):
        parse(tensors(prompt_table_extra_ids=np.ones((1, 5), np.uint64)), table)


def of_dtype(dtype: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    return st.lists(values, min_size=1, max_size=1).map(lambda row: np.array([row], dtype)) | st.lists(values, max_size=6).map(
        lambda row: np.array([row], dtype)
    )


INT32 = of_dtype(np.int32, st.integers(-3, 70) | st.integers(-(2**31), 2**31 - 1))
FP32 = of_dtype(np.float32, st.floats(width=32))
UINT64 = of_dtype(np.uint64, st.integers(0, 2**64 - 1))
BOOL = of_dtype(np.bool_, st.booleans())
# Triton itself sees to the dtypes that the model's configuration names.
ANY_INPUT = {
    **dict.fromkeys(["input_ids", "request_output_len", "end_id", "runtime_top_k", "min_tokens", "beam_width"], INT32),
    **dict.fromkeys(["stop_words_list", "bad_words_list", "num_return_sequences", "num_top_logprobs"], INT32),
    **dict.fromkeys(
        [
            "min_p",
            "embedding_bias",
            "temperature",
            "runtime_top_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        ],
        FP32,
    ),
    **dict.fromkeys(["seed", "prompt_table_extra_ids"], UINT64),
    **dict.fromkeys(["streaming", "return_log_probs", "exclude_input_in_output", "return_num_input_tokens"], BOOL),
}


@settings(deadline=None, max_examples=300)
@given(st.fixed_dictionaries({}, optional=ANY_INPUT))
def test_any_tensors_are_taken_or_refused(more: dict[str, np.ndarray[Any, Any]]) -> None:
    """No other exception: it would be Triton's to report, without our words."""
    try:
        request = parse({**tensors(), **more})
    except RefusedRequestError as refusal:
        assert str(refusal)
    else:
        assert 0 < len(request.input_ids) < LIMITS.max_seq_len
        assert 0 < request.max_new_tokens <= LIMITS.max_seq_len - len(request.input_ids)


def test_log_probs_are_those_of_the_tokens_shown_and_not_of_the_end_id() -> None:
    request = parse(tensors(end_id=2, return_log_probs=True, streaming=True))
    state = SequenceState(request.sampling)
    generation = Generation(request, state)
    state.log_probs += [-0.5, -1.0, -2.0]  # the sampler may be ahead
    first, last = generation.advance([7], finished=False), generation.advance([7, 8, 2], finished=False)
    assert first is not None and last is not None
    assert [(output.output_ids.tolist(), output.final) for output in (first, last)] == [([7], False), ([8], True)]
    assert first.log_probs is not None and first.log_probs.tolist() == [-0.5]
    assert last.log_probs is not None and last.log_probs.tolist() == [-0.5, -1.0]


@pytest.mark.parametrize(("exclude", "shown"), [(True, [7, 8]), (False, [1, 2, 3, 4, 5, 7, 8])])
def test_the_prompt_stands_before_a_whole_answer_unless_it_is_excluded(exclude: bool, shown: list[int]) -> None:
    ids = np.array([[1, 2, 3, 4, 5]], np.int32)
    request = parse(tensors(input_ids=ids, streaming=False, exclude_input_in_output=exclude))
    generation = Generation(request, SequenceState(request.sampling))
    assert generation.advance([7], finished=False) is None
    output = generation.advance([7, 8], finished=True)
    assert output is not None and output.final
    assert output.output_ids.tolist() == shown


def test_nothing_shows_of_what_comes_after_a_complete_grammar() -> None:
    request = parse(tensors(streaming=True))
    state = SequenceState(request.sampling)
    generation = Generation(request, state)
    state.complete_at = 2  # the sampler has found out while it drew the third token
    output = generation.advance([7, 8, 9], finished=False)
    assert output is not None and output.final and output.output_ids.tolist() == [7, 8]


def test_top_log_probs_belong_to_the_tokens_of_their_response() -> None:
    request = parse(tensors(streaming=True, num_top_logprobs=2, num_return_sequences=2))
    state = SequenceState(request.sampling)
    generation = Generation(request, state, index=1)
    for token in (7, 8, 9):
        state.top_logprobs.append((np.array([token, 5], np.int32), np.array([-0.5, -1.0], np.float32)))
    first, second = generation.advance([7], finished=False), generation.advance([7, 8, 9], finished=True)
    assert first is not None and second is not None and first.top_logprob_ids is not None and second.top_logprob_ids is not None
    assert first.top_logprob_ids.tolist() == [[7, 5]] and second.top_logprob_ids.tolist() == [[8, 5], [9, 5]]
    assert second.top_logprobs is not None and second.top_logprobs.shape == (2, 2)
    assert (first.sequence_index, second.sequence_index) == (1, 1)
