"""What answers look like: shapes, streaming, echo, log probabilities, counts."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contract.engine_client import LOG_PROBS, REQUIRED_OUTPUTS, EngineClient, RefusedError

pytestmark = pytest.mark.server


def test_the_model_is_the_backend_that_streams(engine: EngineClient) -> None:
    assert engine.config.backend == "tensorrtllm"
    assert engine.config.model_transaction_policy.decoupled


def test_shapes_and_dtypes(engine: EngineClient) -> None:
    outputs = (*REQUIRED_OUTPUTS, *LOG_PROBS, "num_input_tokens")
    prompt = engine.prompt(20)
    answer = engine.ask(prompt, 6, streaming=False, return_log_probs=True, return_num_input_tokens=True, outputs=outputs)
    for name, shape, dtype in (
        ("output_ids", (1, 1, 6), np.int32),  # [batch, beams, tokens]
        ("sequence_length", (1, 1), np.int32),
        ("cum_log_probs", (1, 1), np.float32),
        ("output_log_probs", (1, 1, 6), np.float32),
        ("num_input_tokens", (1, 1), np.int32),
    ):
        value = answer.last(name)
        assert (value.dtype, value.shape) == (dtype, shape), name
    assert answer.last("sequence_length").item() == 6
    assert answer.last("num_input_tokens").item() == len(prompt)


def test_a_stream_brings_new_tokens_only(engine: EngineClient) -> None:
    prompt = engine.prompt(40)
    whole = engine.ask(prompt, 12, streaming=False, exclude_input_in_output=True)
    stream = engine.ask(prompt, 12, exclude_input_in_output=False)  # in a stream the prompt never shows
    assert stream.tokens == whole.tokens
    assert len(stream.tokens) == 12
    for response in stream.responses:
        if "sequence_length" in response.tensors:  # a response may carry several tokens, or none
            assert response.tensors["sequence_length"].item() == len(response.tokens)


def test_the_end_is_flagged_once_and_last(engine: EngineClient) -> None:
    for streaming in (True, False):
        responses = engine.ask(engine.prompt(10), 5, streaming=streaming).responses
        assert [response.final for response in responses] == [False] * (len(responses) - 1) + [True]
        assert sum("output_ids" in response.tensors for response in responses) == 1 or streaming


def test_the_prompt_is_echoed_unless_excluded(engine: EngineClient) -> None:
    prompt = engine.prompt(15)
    excluded = engine.ask(prompt, 4, streaming=False, exclude_input_in_output=True).tokens
    assert len(excluded) == 4
    assert engine.ask(prompt, 4, streaming=False, exclude_input_in_output=False).tokens == prompt + excluded
    by_default = excluded if engine.parameter("exclude_input_in_output") == "true" else prompt + excluded
    assert engine.ask(prompt, 4, streaming=False).tokens == by_default


def test_log_probs_of_a_stream_are_all_so_far(engine: EngineClient) -> None:
    answer = engine.ask(engine.prompt(30), 8, return_log_probs=True, outputs=(*REQUIRED_OUTPUTS, *LOG_PROBS))
    shown = 0
    for response in answer.responses:
        shown += len(response.tokens)
        if "output_log_probs" in response.tensors:
            assert response.tensors["output_log_probs"].shape == (1, 1, shown)
    log_probs = answer.last("output_log_probs").reshape(-1)
    assert len(log_probs) == len(answer.tokens) == 8
    assert (log_probs <= 1e-4).all()
    assert answer.last("cum_log_probs").item() <= 1e-4
    if engine.parameter("normalize_log_probs", "true") == "false":  # else those of a greedy token are 0
        np.testing.assert_allclose(answer.last("cum_log_probs").item(), log_probs.sum(), rtol=1e-3, atol=1e-3)
        assert (log_probs < 0).any()


def test_no_log_probs_and_no_count_unless_asked_for(engine: EngineClient) -> None:
    answer = engine.ask(engine.prompt(10), 3, outputs=(*REQUIRED_OUTPUTS, *LOG_PROBS, "num_input_tokens"))
    assert {name for response in answer.responses for name in response.tensors} <= set(REQUIRED_OUTPUTS)


@pytest.mark.parametrize("missing", REQUIRED_OUTPUTS)
def test_ids_and_length_must_be_among_the_requested_outputs(engine: EngineClient, missing: str) -> None:
    outputs = tuple(name for name in (*REQUIRED_OUTPUTS, "num_input_tokens") if name != missing)
    with pytest.raises(RefusedError, match=f"{missing} tensor must be present in list of output tensors"):
        engine.ask(engine.prompt(10), 3, outputs=outputs)


def test_without_a_list_of_outputs_all_are_meant(engine: EngineClient) -> None:
    answer = engine.ask(engine.prompt(10), 3, return_num_input_tokens=True, outputs=None)
    assert len(answer.tokens) == 3
    assert answer.last("num_input_tokens").item() == 10


def test_a_too_long_answer_is_clamped_to_the_context(engine: EngineClient) -> None:
    prompt = engine.prompt(engine.limits.max_seq_len - 5)
    assert len(engine.ask(prompt, 1000).tokens) == 5
    assert len(engine.ask(engine.prompt(engine.limits.max_seq_len - 1), 2).tokens) == 1
