"""Guides: which tokens may follow, what cannot be followed, and what one may cost."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from internvideo_server.engine import Guide, GuideType
from internvideo_server.engine.grammar import MAX_GUIDE_BYTES, Grammar, GrammarCompiler, GrammarError
from internvideo_server.export.language_model import export_llm
from internvideo_server.limits import EngineLimits

LONGEST = 4000


class Lab:
    """The engine directory of the tiny checkpoint, and a model that draws any allowed token."""

    def __init__(self, engine_dir: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(engine_dir / "tokenizer.json"))
        self.vocab_size = EngineLimits.from_engine_dir(engine_dir).vocab_size
        self.end = self.tokenizer.token_to_id("<|im_end|>")
        self.compiler = GrammarCompiler(engine_dir / "tokenizer.json", self.vocab_size, self.end)

    def answer(self, kind: GuideType, text: str, seed: int = 0, end_id: int | None = None) -> str:
        """Drawn token by token: mostly short tokens and the end where they are allowed, so that answers come to an end."""
        end_id = self.end if end_id is None else end_id
        return self.follow(self.compiler.compile(Guide(kind, text), end_id), seed, end_id)

    def follow(self, grammar: Grammar, seed: int, end_id: int) -> str:
        chance, tokens = random.Random(seed), list[int]()
        while len(tokens) < LONGEST and (allowed := grammar.allowed(tokens)) is not None:
            ids = np.flatnonzero(allowed).tolist()
            closing = [i for i in ids if i == end_id or self.piece(i) in ('"', "}", "]", '"}', "]}")]
            token = chance.choice(closing if closing and chance.random() < 0.5 else ids)
            if token == end_id:
                break
            tokens.append(token)
        assert len(tokens) < LONGEST
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def piece(self, token: int) -> str:
        return self.tokenizer.decode([token])


@pytest.fixture(scope="module")
def lab(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    engine = tmp_path_factory.mktemp("grammar") / "engine"
    export_llm(checkpoint, engine)
    return Lab(engine)


names = st.sampled_from(["a", "größe", "帧", 'say "x"', "tab\t", "back\\slash", ""])
leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(-50, 50), st.integers(0, 999)
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, st.integers(0, 4), st.integers(0, 20)
    ),
    st.builds(lambda values: {"enum": values}, st.lists(names | st.integers(-9, 9), min_size=1, max_size=4, unique_by=str)),
    st.just({"type": "string", "pattern": "^[a-f]{2,5}(-[0-9]+)?$", "maxLength": 12}),
)


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(names, inner, max_size=4).map(
        lambda parts: {"type": "object", "properties": parts, "required": list(parts)[::2], "additionalProperties": False}
    )


def arrays(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3))


schemas = objects(st.recursive(leaves, lambda inner: objects(inner) | arrays(inner), max_leaves=5))


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """As far as the schemas above go."""
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "object":
            parts = schema["properties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= value.keys() <= parts.keys()
                and all(fits(value[name], parts[name]) for name in value)
            )
        case "array":
            return isinstance(value, list) and len(value) <= schema["maxItems"] and all(fits(v, schema["items"]) for v in value)
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            pattern = schema.get("pattern", "")
            return (
                isinstance(value, str)
                and schema.get("minLength", 0) <= len(value) <= schema["maxLength"]
                and re.search(pattern, value) is not None
            )
        case "boolean":
            return isinstance(value, bool)
    return value is None


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas, seed=st.integers(0, 2**31))
def test_every_answer_is_valid_json_of_its_schema(lab: Lab, schema: dict[str, Any], seed: int) -> None:
    answer = lab.answer(GuideType.JSON_SCHEMA, json.dumps(schema), seed)
    assert fits(json.loads(answer), schema)


@pytest.mark.parametrize("seed", range(10))
def test_json_is_any_object(lab: Lab, seed: int) -> None:
    assert isinstance(json.loads(lab.answer(GuideType.JSON, "", seed)), dict)


@pytest.mark.parametrize("pattern", [r"[0-9]", r"(red|blue) (panda|bear)s?", r"是|否", r"a\.b\ c", r"[^a-z]{3}", r""])
def test_a_regex_is_matched_by_the_whole_answer(lab: Lab, pattern: str) -> None:
    for seed in range(5):
        assert re.fullmatch(pattern, lab.answer(GuideType.REGEX, pattern, seed))


def test_a_grammar_in_llama_cpps_form(lab: Lab) -> None:
    grammar = 'root ::= "yes" | "no" (" " word)+\nword ::= [a-c]{1,3}'
    assert re.fullmatch(r"yes|no( [a-c]{1,3})+", lab.answer(GuideType.EBNF_GRAMMAR, grammar, 3))


def test_without_an_end_token_an_answer_ends_where_nothing_can_follow(lab: Lab) -> None:
    assert re.fullmatch("yes|no", lab.answer(GuideType.REGEX, "yes|no", end_id=-1))
    assert json.loads(lab.answer(GuideType.JSON_SCHEMA, '{"enum": [1, 2]}', end_id=-1)) in (1, 2)
    assert lab.answer(GuideType.REGEX, "", end_id=-1) == ""


def test_the_requests_own_end_token_stands_for_the_models(lab: Lab) -> None:
    other = lab.tokenizer.token_to_id("</s>")
    allowed = lab.compiler.compile(Guide(GuideType.REGEX, "a*"), other).allowed([])
    assert allowed is not None and allowed[other] and not allowed[lab.end]


def test_control_tokens_are_never_allowed(lab: Lab) -> None:
    allowed = lab.compiler.compile(Guide(GuideType.REGEX, ".*"), lab.end).allowed([])
    assert allowed is not None
    control = {i for i, token in lab.tokenizer.get_added_tokens_decoder().items() if token.special} - {lab.end}
    assert control and not any(allowed[i] for i in control)
    assert len(allowed) == lab.vocab_size


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        (GuideType.JSON_SCHEMA, "{", "Expecting property name"),
        (GuideType.JSON_SCHEMA, "[]", "not a JSON object"),
        (GuideType.JSON_SCHEMA, '{"type": "nonsense"}', "Invalid type: nonsense"),
        (GuideType.JSON_SCHEMA, '{"not": {}}', "not"),
        (GuideType.JSON_SCHEMA, '{"$ref": "http://localhost/schema"}', "does not fetch"),
        (GuideType.JSON_SCHEMA, '{"$ref": "file:///etc/passwd"}', "does not fetch"),
        (GuideType.JSON_SCHEMA, '{"items": ' * 300 + "{}" + "}" * 300, ""),
        (GuideType.JSON_SCHEMA, "[" * 100_000, "at most"),
        (GuideType.JSON_SCHEMA, "[" * 60_000, "nested too deeply"),
        (GuideType.JSON_SCHEMA, json.dumps({"enum": ["x" * 100] * 1000}), f"at most {MAX_GUIDE_BYTES}"),
        (GuideType.REGEX, "(unclosed", "unclosed group"),
        (GuideType.REGEX, "(a{1000}){1000}", "too many expressions"),
        (GuideType.EBNF_GRAMMAR, "garbage", "Expected ::="),
        (GuideType.EBNF_GRAMMAR, "", "root"),
        (GuideType.EBNF_GRAMMAR, "root ::= missing", "missing"),
        (GuideType.EBNF_GRAMMAR, "root ::= root", "nothing but itself"),
        (GuideType.JSON_SCHEMA, '{"$ref": "#"}', "nothing but itself"),
        (GuideType.EBNF_GRAMMAR, 'root ::= "a" root', ""),
        (GuideType.EBNF_GRAMMAR, "root ::= " + "(" * 5000, ""),
    ],
)
def test_what_cannot_be_followed_is_said(lab: Lab, kind: GuideType, text: str, reason: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        lab.answer(kind, text)
    assert str(refusal.value).startswith("[INVALID_ARGUMENT param=guided_decoding_guide] the guide cannot be followed: ")
    assert reason in str(refusal.value) and "\n" not in str(refusal.value)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(GuideType), text=st.text(max_size=40) | st.from_regex(r'(root ::= |[a-z"\[\]{}()*+|\\^.:]){0,12}'))
def test_any_text_is_a_guide_or_refused(lab: Lab, kind: GuideType, text: str) -> None:
    try:
        grammar = lab.compiler.compile(Guide(kind, text), lab.end)
        tokens: list[int] = []
        while len(tokens) < 5 and (allowed := grammar.allowed(tokens)) is not None:
            tokens.append(int(np.flatnonzero(allowed)[0]))
            if tokens[-1] == lab.end:
                break
    except GrammarError as refusal:
        assert str(refusal)


def test_a_guide_used_again_is_not_compiled_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Guide(GuideType.REGEX, "[0-9]{3}")
    lab.compiler.compile(guide, lab.end)
    monkeypatch.setattr(lab.compiler, "_compiled", lambda _: pytest.fail("compiled again"))
    first, second = (lab.compiler.compile(guide, lab.end) for _ in range(2))
    assert first.allowed([int(np.flatnonzero(first.allowed([]))[0])]) is not None
    assert second.allowed([]) is not None  # each answer has a way of its own
    assert re.fullmatch("[0-9]{3}", lab.follow(second, 1, lab.end))
