"""Guides, several answers, biases, min-p and likely tokens. What the server says that its engine lacks is skipped."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.contract.engine_client import REQUIRED_OUTPUTS, EngineClient, RefusedError

TOP = ("top_logprob_ids", "top_logprobs")


@pytest.fixture
def offers(engine: EngineClient, request: pytest.FixtureRequest) -> None:
    """Skip where the engine lacks the input that the test is marked with."""
    mark = request.node.get_closest_marker("needs_input")
    name = mark.args[0]
    if not engine.declares(name) or name in engine.lacks:
        pytest.skip(f"this engine has no {name}")


pytestmark = [pytest.mark.server, pytest.mark.usefixtures("offers")]


def sequences(engine: EngineClient, ids: list[int], count: int, wanted: int, **more: object) -> dict[int, list[int]]:
    """The tokens of each of several answers."""
    outputs = (*REQUIRED_OUTPUTS, "sequence_index")
    answer = engine.ask(ids, count, num_return_sequences=wanted, outputs=outputs, **more)
    found: dict[int, list[int]] = {}
    for response in answer.responses:
        if response.tokens:
            found.setdefault(response.tensors["sequence_index"].item(), []).extend(response.tokens)
    return found


@pytest.mark.needs_input("num_return_sequences")
def test_several_answers_are_told_apart_and_come_whole(engine: EngineClient) -> None:
    answers = sequences(engine, engine.prompt(40), 6, 4, runtime_top_k=50, temperature=50.0, seed=7)
    assert answers.keys() == {0, 1, 2, 3}
    assert all(len(tokens) == 6 for tokens in answers.values())
    assert len({tuple(tokens) for tokens in answers.values()}) > 1


@pytest.mark.needs_input("num_return_sequences")
def test_the_answers_of_several_have_the_seeds_that_follow(engine: EngineClient) -> None:
    ids, sampling = engine.prompt(40), {"runtime_top_k": 50, "temperature": 50.0}
    answers = sequences(engine, ids, 4, 3, seed=7, **sampling)
    for index, tokens in answers.items():
        alone = engine.ask(ids, 4, seed=7 + index, **sampling).tokens
        assert tokens[0] == alone[0]  # later ones may part where a tie falls another way


@pytest.mark.needs_input("num_return_sequences")
def test_more_answers_than_the_batch_holds_all_come(engine: EngineClient) -> None:
    wanted = min(16, engine.batch + 2)
    answers = sequences(engine, engine.prompt(10), 3, wanted, runtime_top_k=50, temperature=50.0, seed=1)
    assert {index: len(tokens) for index, tokens in answers.items()} == dict.fromkeys(range(wanted), 3)


@pytest.mark.needs_input("num_return_sequences")
def test_several_greedy_answers_are_one_and_the_same(engine: EngineClient) -> None:
    answers = sequences(engine, engine.prompt(10), 3, 2)
    assert answers[0][0] == answers[1][0]


@pytest.mark.needs_input("embedding_bias")
def test_a_bias_forbids_and_forces(engine: EngineClient) -> None:
    prompt = engine.prompt(40)
    likeliest, other = engine.ask(prompt, 1).tokens[0], 200
    bias = np.zeros((1, engine.limits.vocab_size), np.float32)
    bias[0, likeliest] = -np.inf
    assert engine.ask(prompt, 1, embedding_bias=bias).tokens != [likeliest]
    bias = np.full((1, engine.limits.vocab_size), -np.inf, np.float32)
    bias[0, other] = 0
    assert engine.ask(prompt, 4, embedding_bias=bias).tokens == [other] * 4


@pytest.mark.needs_input("min_p")
def test_a_high_min_p_takes_the_likeliest(engine: EngineClient) -> None:
    prompt = engine.prompt(40)
    sampling = {"runtime_top_k": 0, "runtime_top_p": 1.0, "temperature": 1.5, "seed": 5}
    assert engine.ask(prompt, 4, min_p=1.0, **sampling).tokens[0] == engine.ask(prompt, 1).tokens[0]
    with pytest.raises(RefusedError, match="min_p"):
        engine.ask(prompt, 4, min_p=1.5, **sampling)


@pytest.mark.needs_input("num_top_logprobs")
@pytest.mark.parametrize("streaming", [True, False])
def test_the_likeliest_tokens_come_with_each_token(engine: EngineClient, streaming: bool) -> None:
    outputs = (*REQUIRED_OUTPUTS, *TOP)
    answer = engine.ask(engine.prompt(40), 5, num_top_logprobs=3, outputs=outputs, streaming=streaming)
    ids = np.concatenate([r.tensors["top_logprob_ids"] for r in answer.responses if "top_logprob_ids" in r.tensors], axis=1)
    log_probs = np.concatenate([r.tensors["top_logprobs"] for r in answer.responses if "top_logprobs" in r.tensors], axis=1)
    assert ids.shape == log_probs.shape == (1, 5, 3)  # [batch, tokens, num_top_logprobs]
    assert (np.diff(log_probs, axis=-1) <= 0).all() and (log_probs <= 1e-4).all()
    assert ids[0, :, 0].tolist() == answer.tokens  # greedy


@pytest.mark.needs_input("num_top_logprobs")
def test_twenty_of_the_likeliest_are_possible_and_no_more(engine: EngineClient) -> None:
    answer = engine.ask(engine.prompt(10), 1, num_top_logprobs=20, outputs=(*REQUIRED_OUTPUTS, *TOP))
    assert answer.last("top_logprobs").shape == (1, 1, 20)
    with pytest.raises(RefusedError, match="num_top_logprobs"):
        engine.ask(engine.prompt(10), 1, num_top_logprobs=21)


def guide(kind: str, text: str) -> dict[str, np.ndarray]:
    """The two inputs of a guide."""
    values = {"guided_decoding_guide_type": kind, "guided_decoding_guide": text}
    return {name: np.array([[value.encode()]], dtype=np.object_) for name, value in values.items()}


@pytest.fixture
def tokenizer(engine: EngineClient) -> Tokenizer:
    file = engine.engine_dir / "tokenizer.json"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    return Tokenizer.from_file(str(file))


SAMPLED = {"runtime_top_k": 0, "runtime_top_p": 1.0, "temperature": 2.0, "seed": 3}


@pytest.mark.needs_input("guided_decoding_guide_type")
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_keeps_to_a_schema(engine: EngineClient, tokenizer: Tokenizer, sampling: dict[str, object]) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    end = tokenizer.token_to_id("<|im_end|>")
    answer = engine.ask(engine.prompt(20), 100, end_id=end, **guide("json_schema", json.dumps(schema)), **sampling)
    value = json.loads(tokenizer.decode(answer.tokens))
    assert value["colour"] in ("red", "blue") and 0 <= value["count"] <= 9


@pytest.mark.needs_input("guided_decoding_guide_type")
@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [("regex", "(yes|no)", {"yes", "no"}), ("ebnf_grammar", 'root ::= "left" | "right"', {"left", "right"})],
)
def test_an_answer_keeps_to_a_regex_or_a_grammar(
    engine: EngineClient, tokenizer: Tokenizer, kind: str, text: str, expected: set[str]
) -> None:
    end = tokenizer.token_to_id("<|im_end|>")
    answer = engine.ask(engine.prompt(20), 30, end_id=end, **guide(kind, text))
    assert tokenizer.decode(answer.tokens) in expected


@pytest.mark.needs_input("guided_decoding_guide_type")
def test_a_guided_answer_is_cut_at_its_length(engine: EngineClient, tokenizer: Tokenizer) -> None:
    end = tokenizer.token_to_id("<|im_end|>")
    answer = engine.ask(engine.prompt(20), 3, end_id=end, **guide("regex", "[0-9]{20}"))
    assert len(answer.tokens) == 3 and tokenizer.decode(answer.tokens).isdigit()


@pytest.mark.needs_input("guided_decoding_guide_type")
@pytest.mark.parametrize(("kind", "text"), [("json_schema", '{"type": "nonsense"}'), ("json_schema", "{"), ("regex", "(open")])
def test_a_wrong_guide_is_refused_and_harms_nobody(engine: EngineClient, kind: str, text: str) -> None:
    with engine.start(engine.prompt(10), 60) as running:
        first = running.next()
        with pytest.raises(RefusedError):
            engine.ask(engine.prompt(10), **guide(kind, text))
        assert len(first.tokens) + len(running.rest().tokens) == 60
