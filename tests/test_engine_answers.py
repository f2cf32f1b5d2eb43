"""What the embedded engine answers: ends, bans, penalties, log probabilities, several answers, guides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from internvideo_server.engine import Engine
from tests.engine_lab import (
    PATIENCE_S,
    SLOTS,
    Several,
    ask,
    guided,
    prompt,
    wait_until_idle,
)


def test_the_end_id_is_not_shown_and_a_stop_word_is(engine: Engine) -> None:
    ids = ask(engine, prompt(5, 25), 20).wait()
    assert ask(engine, prompt(5, 25), 20, end_id=ids[6]).wait() == ids[: ids.index(ids[6])]
    word = ids[4:6]
    first = next(i for i in range(len(ids)) if ids[i : i + 2] == word)
    stop_words = np.array([[word, [2, -1]]], np.int32)
    assert ask(engine, prompt(5, 25), 20, stop_words_list=stop_words).wait() == ids[: first + 2]
    one = np.array([[[ids[3]], [1]]], np.int32)
    assert ask(engine, prompt(5, 25), 20, stop_words_list=one).wait() == ids[: ids.index(ids[3]) + 1]


def test_min_tokens_holds_the_end_back_and_bad_words_never_come(engine: Engine) -> None:
    ids = ask(engine, prompt(6, 25), 20).wait()
    assert ask(engine, prompt(6, 25), 20, end_id=ids[0]).wait() == []
    assert len(ask(engine, prompt(6, 25), 20, end_id=ids[0], min_tokens=5).wait()) >= 5
    assert ids[0] not in ask(engine, prompt(6, 25), 20, bad_words_list=np.array([[[ids[0]], [1]]], np.int32)).wait()


def test_words_and_bans_outside_the_vocabulary_do_no_harm(engine: Engine) -> None:
    odd = np.array([[[-5, 10**7, 2**31 - 1], [1, 2, 3]]], np.int32)
    expected = ask(engine, prompt(7, 25)).wait()
    assert ask(engine, prompt(7, 25), bad_words_list=odd, stop_words_list=odd).wait() == expected


def test_penalties_turn_repetition_away(engine: Engine) -> None:
    plain = ask(engine, prompt(8, 25), 100).wait()
    varied = ask(engine, prompt(8, 25), 100, frequency_penalty=50.0).wait()
    assert len(set(varied)) == 100 > len(set(plain))


def test_streaming_shows_new_tokens_and_all_log_probs(engine: Engine) -> None:
    answer = ask(engine, prompt(9, 25), 10, return_log_probs=True)
    ids = answer.wait()
    shown = 0
    for output in answer.outputs:
        shown += len(output.output_ids)
        assert output.log_probs is not None and len(output.log_probs) == shown
    assert shown == len(ids) == 10
    whole = ask(engine, prompt(9, 25), 10, return_log_probs=True, streaming=False, exclude_input_in_output=False)
    assert whole.wait() == prompt(9, 25) + ids and len(whole.outputs) == 1
    np.testing.assert_allclose(whole.outputs[0].log_probs, answer.outputs[-1].log_probs, atol=1e-5)
    assert {output.num_input_tokens for output in answer.outputs} == {None}


def test_no_log_probs_unless_asked_for(engine: Engine) -> None:
    answer = ask(engine, prompt(9, 25), 3, return_num_input_tokens=True)
    answer.wait()
    assert {output.log_probs for output in answer.outputs} == {None}
    assert {output.num_input_tokens for output in answer.outputs} == {25}


def test_several_answers_are_those_of_their_seeds_alone(engine: Engine) -> None:
    ids, options = prompt(40, 30), {"runtime_top_p": 1.0, "temperature": 3.0}
    several = Several()
    ask(engine, ids, 8, seed=100, num_return_sequences=SLOTS + 2, answer=several, **options).wait()
    alone = {i: ask(engine, ids, 8, seed=100 + i, **options).wait() for i in range(SLOTS + 2)}
    assert several.sequences == alone
    assert len({tuple(tokens) for tokens in alone.values()}) > 1
    assert [output.final for output in several.outputs] == [False] * (len(several.outputs) - 1) + [True]
    wait_until_idle(engine)


@pytest.mark.parametrize("sampling", [{}, {"runtime_top_p": 1.0, "temperature": 2.0, "seed": 3}], ids=["greedy", "sampled"])
def test_an_answer_keeps_to_its_guide(engine: Engine, engine_dir: Path, sampling: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_file(str(engine_dir / "tokenizer.json"))
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["panda", "bear"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["animal", "count"],
        "additionalProperties": False,
    }
    end = tokenizer.token_to_id("<|im_end|>")
    for end_id in (end, -1):
        several = Several()
        guide = guided("json_schema", json.dumps(schema))
        ask(engine, prompt(50, 20), 100, end_id=end_id, num_return_sequences=3, answer=several, **guide, **sampling).wait()
        for tokens in several.sequences.values():
            answer = json.loads(tokenizer.decode(tokens, skip_special_tokens=False))
            assert answer["animal"] in ("panda", "bear") and 0 <= answer["count"] <= 99
    wait_until_idle(engine)


def test_guides_and_other_wishes_together(engine: Engine, engine_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(engine_dir / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    digits = ask(engine, prompt(51, 20), 5, end_id=end, min_tokens=5, return_log_probs=True, **guided("regex", "[0-9]+"))
    assert len(digits.wait()) == 5  # cut at its length; min_tokens holds the end back
    assert tokenizer.decode(digits.wait()).isdigit()
    word = ask(engine, prompt(51, 20), 20, end_id=end, min_tokens=10, **guided("regex", "a"))
    assert tokenizer.decode(word.wait()) == "a"  # nothing can follow, whatever min_tokens says
    zero = tokenizer.token_to_id("0")
    first = ask(engine, prompt(51, 20), 20, stop_words_list=np.array([[[zero], [1]]], np.int32), **guided("regex", "0[0-9]{9}"))
    assert first.wait() == [zero]
    banned = np.array([[[zero], [1]]], np.int32)
    nothing = ask(engine, prompt(51, 20), 20, bad_words_list=banned, **guided("regex", "0"))
    assert nothing.done.wait(PATIENCE_S) and nothing.error is not None and "exclude each other" in nothing.error
    wait_until_idle(engine)


def test_a_guide_that_cannot_be_followed_fails_its_request_only(engine: Engine) -> None:
    running = ask(engine, prompt(52, 10), 100)
    for text in ("(unclosed", "(a{1000}){1000}"):
        bad = ask(engine, prompt(53, 10), num_return_sequences=2, **guided("regex", text))
        assert bad.done.wait(PATIENCE_S) and bad.ends == 1
        assert bad.error is not None and bad.error.startswith("[INVALID_ARGUMENT param=guided_decoding_guide]")
    assert len(running.wait()) == 100
    wait_until_idle(engine)


def test_a_bias_and_top_log_probs_reach_the_answer(engine: Engine) -> None:
    ids = prompt(56, 20)
    plain = ask(engine, ids, 6, num_top_logprobs=5)
    tokens = plain.wait()
    top = np.concatenate([output.top_logprob_ids for output in plain.outputs if output.top_logprob_ids is not None])
    assert top.shape == (6, 5) and top[:, 0].tolist() == tokens  # greedy: the likeliest
    bias = np.zeros((1, engine.limits.vocab_size), np.float32)
    bias[0, tokens[0]] = -np.inf
    assert ask(engine, ids, 1, embedding_bias=bias).wait() == [int(top[0, 1])]
