"""What is refused, with the backend's words; and that a refusal harms nobody else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.contract.engine_client import EngineClient, RefusedError

pytestmark = pytest.mark.server


def word_list(tokens: list[int], ends: list[int]) -> np.ndarray:
    return np.array([[tokens, ends]], np.int32)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"input_ids": None}, "not (present|provided)"),
        ({"request_output_len": None}, "request_output_len"),
        ({"request_output_len": 0}, "mMaxNewTokens > 0"),
        ({"request_output_len": -1}, "mMaxNewTokens > 0"),
        ({"runtime_top_k": -1}, "topK"),
        ({"runtime_top_p": 1.5}, "topP"),
        ({"temperature": -1.0}, "temperature"),
        ({"repetition_penalty": 0.0}, "repetitionpenalty|repetition_penalty|repetitionPenalty"),
        ({"min_tokens": -1}, "minTokens|min_tokens"),
        ({"stop_words_list": word_list([5, 6], [3, -1])}, "out-of-bound offsets"),
        ({"stop_words_list": word_list([5, 6], [2, 1])}, "non-increasing offsets"),
        ({"bad_words_list": word_list([5, 6], [-1, 2])}, "additional -1s"),
    ],
)
def test_a_wrong_input_is_refused(engine: EngineClient, inputs: dict[str, Any], text: str) -> None:
    with pytest.raises(RefusedError, match=text):
        engine.ask(engine.prompt(10), **inputs)
    assert len(engine.ask(engine.prompt(10), 2).tokens) == 2


@pytest.mark.parametrize("end_id", [-2, 2**31 - 1])
def test_an_end_id_outside_the_vocabulary_is_refused(engine: EngineClient, end_id: int) -> None:
    with pytest.raises(RefusedError, match=rf"EndId \({end_id}\) is not within acceptable range \[-1, "):
        engine.ask(engine.prompt(10), end_id=end_id)


def test_a_prompt_that_fills_the_context_is_refused(engine: EngineClient) -> None:
    length = engine.limits.max_seq_len
    with pytest.raises(RefusedError, match=rf"Prompt length \({length}\) exceeds maximum input length \(\d+\)"):
        engine.ask(engine.prompt(length))


def test_top_p_of_zero_is_no_top_p(engine: EngineClient) -> None:
    prompt = engine.prompt(10)
    assert engine.ask(prompt, runtime_top_p=0.0).tokens == engine.ask(prompt).tokens


def test_a_refusal_harms_no_other_request(engine: EngineClient) -> None:
    with engine.start(engine.prompt(10), 100) as running:
        first = running.next()
        for _ in range(5):
            with pytest.raises(RefusedError):
                engine.ask(engine.prompt(10), temperature=-1.0)
        assert len(first.tokens) + len(running.rest().tokens) == 100


def test_guided_decoding_is_done_or_refused_but_not_dropped(engine: EngineClient) -> None:
    if not engine.declares("guided_decoding_guide_type"):
        pytest.skip("the model's configuration has no guided decoding inputs")
    guide = {"guided_decoding_guide_type": b"regex", "guided_decoding_guide": b"[0-9]"}
    prompt = engine.prompt(10)
    try:
        answer = engine.ask(prompt, **guide)
    except RefusedError as refusal:
        assert "GuidedDecoder is not setup" in str(refusal) or "guided_decoding_guide" in engine.lacks
    else:
        assert len(answer.tokens) == 1  # `[0-9]` is one character, and nothing can follow it
