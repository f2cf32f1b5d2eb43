"""Fields of OpenAI and vLLM on their way to the engine and back: several answers, grammars, calls, log probabilities."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from tests.fake_triton import INPUTS, FakeTriton, Step, piece

MODEL = "InternVideo2_5"
QUESTION: Any = [{"role": "user", "content": "What is this?"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "move", "parameters": {"type": "object", "properties": {"Hello": {"type": "string"}}}},
}


def post(url: str, path: str = "chat/completions", **fields: Any) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/{path}", json={"model": MODEL, "messages": QUESTION, **fields}, timeout=30)


def events(response: httpx2.Response) -> list[Any]:
    return [json.loads(line[6:]) for line in response.text.split("\n") if line.startswith("data: {")]


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_keep_apart_and_end_each_by_itself(fake: FakeTriton, url: str, stream: bool) -> None:
    fake.script = [
        Step([piece("Hello")], sequence=1),
        Step([piece("▁red")], sequence=0),
        Step([piece("E"), piece("N"), piece("D"), piece(".")], sequence=0),
        Step([piece("▁two")], sequence=1),
    ]
    response = post(url, n=2, stop="END", stream=stream, max_tokens=2)
    if stream:
        texts, reasons = {0: "", 1: ""}, {}
        for event in events(response):
            for choice in event["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
                reasons[choice["index"]] = choice["finish_reason"]
    else:
        texts = {choice["index"]: choice["message"]["content"] for choice in response.json()["choices"]}
        reasons = {choice["index"]: choice["finish_reason"] for choice in response.json()["choices"]}
        assert response.json()["usage"]["completion_tokens"] == 6
        assert response.json()["choices"][0]["stop_reason"] == "END"
    assert texts == {0: " red", 1: "Hello two"} and reasons == {0: "stop", 1: "length"}
    assert fake.requests[0]["num_return_sequences"] == 2


def test_best_of_gives_the_likeliest(fake: FakeTriton, url: str) -> None:
    fake.script = [
        Step([piece("Hello")], sequence=0, log_probs=[-3.0]),
        Step([piece("▁red")], sequence=1, log_probs=[-1.0]),
        Step([piece("▁two")], sequence=2, log_probs=[-2.0]),
    ]
    choices = post(url, n=2, best_of=3).json()["choices"]
    assert [choice["message"]["content"] for choice in choices] == [" red", " two"]
    assert [choice["logprobs"] for choice in choices] == [None, None]


def test_best_of_is_refused_in_a_stream(url: str) -> None:
    assert post(url, n=1, best_of=3, stream=True).json()["error"]["param"] == "best_of"


def test_top_log_probs_are_told_and_end_where_the_text_ends(fake: FakeTriton, url: str) -> None:
    top = [[(piece("Hello"), -0.1), (piece("▁red"), -2.5), (-1, 0.0)]]
    fake.script = [
        Step([piece("Hello")], log_probs=[-0.1], top=top),
        Step([piece("E")], log_probs=[-0.1, -0.2], top=top),
        Step([piece("N")], log_probs=[-0.1, -0.2, -0.3], top=top),
    ]
    response = post(url, logprobs=True, top_logprobs=2, stop="EN")
    (first,) = response.json()["choices"][0]["logprobs"]["content"]
    assert first["token"] == "Hello" and [each["token"] for each in first["top_logprobs"]] == ["Hello", " red"]
    assert fake.requests[0]["num_top_logprobs"] == 2


def test_biases_bad_words_and_ids_reach_the_engine(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")])]
    fields: dict[str, Any] = {
        "logit_bias": {"5": -100, "7": 2, "50256": -100},
        "min_p": 0.1,
        "temperature": 1,
        "ignore_eos": True,
    }
    assert post(url, **fields, stop_token_ids=[9], bad_words=["Hello"], cache_salt="s").status_code == 200
    asked = fake.requests[0]
    assert asked["embedding_bias"][5] == -100 and asked["embedding_bias"][7] == 2 and sum(map(bool, asked["embedding_bias"])) == 2
    assert asked["min_p"] == pytest.approx(0.1) and asked["ignore_eos"] is True
    assert asked["stop_token_ids"] == [9] and asked["bad_words_list"][0] and asked["cache_salt"] == ":s"


def test_only_allowed_tokens_keep_their_logits(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")])]
    assert post(url, allowed_token_ids=[5, 6]).status_code == 200
    assert [i for i, bias in enumerate(fake.requests[0]["embedding_bias"]) if bias == 0] == [5, 6]


def test_a_stop_token_ends_the_text_and_is_told(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello"), piece("▁red")])]
    (choice,) = post(url, stop_token_ids=[piece("▁red")]).json()["choices"]
    assert (
        choice["message"]["content"] == "Hello" and choice["stop_reason"] == piece("▁red") and choice["finish_reason"] == "stop"
    )
    (choice,) = post(url, stop_token_ids=[piece("▁red")], include_stop_str_in_output=True).json()["choices"]
    assert choice["message"]["content"] == "Hello red"


def test_special_tokens_are_shown_where_they_are_asked_for(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello"), 3, piece("▁red")])]
    assert post(url, skip_special_tokens=False).json()["choices"][0]["message"]["content"] == "Hello<|im_end|> red"
    assert post(url).json()["choices"][0]["message"]["content"] == "Hello red"


@pytest.mark.parametrize(
    ("fields", "kind", "guide"),
    [
        ({"response_format": {"type": "json_object"}}, "json", None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"a": 1}}}}, "json_schema", {"a": 1}),
        ({"structured_outputs": {"json": {"a": 1}}}, "json_schema", {"a": 1}),
        ({"structured_outputs": {"json": {}}}, "json_schema", {}),
        (
            {"guided_json": {"uniqueItems": False, "minItems": 2.0, "pattern": None, "default": None, "items": {"format": None}}},
            "json_schema",
            {"minItems": 2, "default": None, "items": {}},
        ),
        (
            {"guided_json": {"$defs": {"pattern": True}, "enum": [None]}},
            "json_schema",
            {"$defs": {"pattern": True}, "enum": [None]},
        ),
        ({"structured_outputs": {"json": {"const": 0}}}, "json_schema", {"const": 0}),
        ({"guided_json": '{"a": 1}'}, "json_schema", {"a": 1}),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"guided_choice": ["a.b", "c"]}, "regex", r"(a\.b|c)"),
        ({"guided_grammar": "root ::= x"}, "ebnf_grammar", "root ::= x"),
    ],
)
def test_grammars_reach_the_engine(fake: FakeTriton, url: str, fields: dict[str, Any], kind: str, guide: Any) -> None:
    fake.script = [Step([piece("Hello")])]
    assert post(url, **fields).status_code == 200
    asked = fake.requests[0]
    assert asked["guided_decoding_guide_type"] == kind
    found = asked.get("guided_decoding_guide")
    assert (json.loads(found) if kind == "json_schema" else found) == guide


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": ["x"] * 1001},
        {"properties": {str(i): {} for i in range(301)}},
        {"description": "x" * 70_000},
    ],
)
def test_schemas_that_a_grammar_library_chokes_on_are_refused(fake: FakeTriton, url: str, schema: dict[str, Any]) -> None:
    assert post(url, guided_json=schema).json()["error"]["param"] == "guided_json"
    assert fake.requests == []


def test_what_the_engine_lacks_is_refused_with_its_name(fake: FakeTriton, url: str) -> None:
    fake.inputs = tuple(name for name in INPUTS if name != "min_p")
    error = post(url, min_p=0.5, temperature=1).json()["error"]
    assert error["param"] == "min_p" and "embedded engine" in error["message"]
    fake.script = [Step([piece("Hello")])]
    assert post(url, logit_bias={"5": 1}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "move"}}])
def test_a_forced_call_comes_back_as_one(fake: FakeTriton, url: str, stream: bool, choice: Any) -> None:
    fake.script = [Step([piece("Hello")]), Step([piece("▁world")])]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        answer = sdk.chat.completions.create(model=MODEL, messages=QUESTION, tools=[TOOL], tool_choice=choice, stream=stream)
        if stream:
            chunks = list(answer)
            calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
            assert calls[0].id and calls[0].function.name == "move"
            assert "".join(call.function.arguments for call in calls) == "Hello world"
            assert chunks[-1].choices[0].finish_reason == "tool_calls"
        else:
            (call,) = answer.choices[0].message.tool_calls
            assert (call.function.name, call.function.arguments) == ("move", "Hello world")
            assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
    asked = fake.requests[0]
    assert json.loads(asked["guided_decoding_guide"]) == {**TOOL["function"]["parameters"], "additionalProperties": False}
    assert "move" in asked["messages"][-2]["content"]


def test_references_in_a_function_still_lead_to_its_own_parts(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")])]
    own = {"$ref": "#", "default": {"$ref": "#"}}
    parameters = {"type": "object", "properties": {"$ref": {"$ref": "#/$defs/A"}, "own": own}, "$defs": {"A": {"type": "null"}}}
    tools = [TOOL, {"type": "function", "function": {"name": "f", "parameters": parameters}}]
    assert post(url, tools=tools, tool_choice="required").status_code == 200
    arguments = json.loads(fake.requests[0]["guided_decoding_guide"])["anyOf"][1]["properties"]["arguments"]
    place = "#/anyOf/1/properties/arguments"
    assert arguments["properties"]["$ref"] == {"$ref": f"{place}/$defs/A"}
    assert arguments["properties"]["own"] == {"$ref": place, "default": {"$ref": "#"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.schema"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tools"),
    ],
)
def test_a_grammar_that_the_engine_refuses_names_the_field(fake: FakeTriton, url: str, fields: Any, param: str) -> None:
    fake.script = [Step(error="[INVALID_ARGUMENT param=guided_decoding_guide] the guide cannot be followed: no")]
    assert post(url, **fields).json()["error"]["param"] == param


def test_tools_without_a_forced_call_are_answered_in_text(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")])]
    for choice in ("none", "auto", None):
        answer = post(url, tools=[TOOL], tool_choice=choice).json()["choices"][0]
        assert answer["message"]["content"] == "Hello" and answer["finish_reason"] == "stop"
    assert all("guided_decoding_guide_type" not in request for request in fake.requests)


def test_usage_can_come_with_every_chunk(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")]), Step([piece("▁red")])]
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert all(event["usage"]["completion_tokens"] >= 0 for event in events(post(url, stream=True, stream_options=options)))


def test_completions_go_on_with_a_text(fake: FakeTriton, url: str) -> None:
    fake.script = [Step([piece("Hello")], log_probs=[-0.5]), Step([piece("▁red")], log_probs=[-0.5, -1.0])]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        answer = sdk.completions.create(model=MODEL, prompt="Say", logprobs=0)
        assert answer.choices[0].text == "Hello red" and answer.choices[0].logprobs.token_logprobs == [-0.5, -1.0]
        assert "".join(c.choices[0].text for c in sdk.completions.create(model=MODEL, prompt="Say", stream=True)) == "Hello red"
        assert sdk.completions.create(model=MODEL, prompt="Say", echo=True).choices[0].text == "SayHello red"
        both = sdk.completions.create(model=MODEL, prompt=["a", "b"])
        assert [choice.text for choice in both.choices] == ["Hello red", "Hello red"]
        sdk.completions.create(model=MODEL, prompt=[5, 6])
    assert fake.requests[0]["messages"] == {"prompt": "Say"} and fake.requests[0]["request_output_len"] == 16
    assert fake.requests[-1]["messages"] == {"prompt_token_ids": [5, 6]}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        ({"properties": {"a": {"type": "object", "properties": {}}}}, True),
        ({"properties": {"a": {}}, "additionalProperties": True}, False),
        ({"type": "object"}, False),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, False),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]}, False),
        ({"properties": {"a": {}}, "required": ["b"]}, False),
    ],
)
def test_an_object_gets_the_properties_that_it_names(fake: FakeTriton, url: str, schema: dict[str, Any], closed: bool) -> None:
    fake.script = [Step([piece("Hello")])]
    assert post(url, structured_outputs={"json": schema}).status_code == 200
    sent = json.loads(fake.requests[0]["guided_decoding_guide"])
    if closed:
        assert sent == {"properties": {"a": {"type": "object", "properties": {}, "additionalProperties": False}}} | {
            "additionalProperties": False
        }
    else:
        assert sent == schema


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_a_fault_of_a_completion_keeps_its_status(fake: FakeTriton, url: str, prompt: Any) -> None:
    fake.script = [Step(error="[INVALID_ARGUMENT param=prompt] token 99999 is not within 0 .. 9999")]
    response = httpx2.post(f"{url}/v1/completions", json={"model": MODEL, "prompt": prompt})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
