"""LangChain's ChatOpenAI."""

import asyncio
import json
import urllib.request
from typing import Literal

import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

from server import BASE_URL, KEY, MODEL, TOO_LONG, URL, VIDEO, about

METHODS = ["json_schema", "function_calling", "json_mode"]


class Star(BaseModel):
    """What is known of the star."""

    colour: Literal["red", "yellow", "green"]
    moves: bool


@tool
def move(direction: Literal["left", "right"]) -> str:
    """Move the star."""
    return f"moved {direction}"


def chat(**options: object) -> ChatOpenAI:
    defaults = {"model": MODEL, "base_url": BASE_URL, "api_key": KEY, "max_retries": 0, "max_tokens": 16, "temperature": 0}
    return ChatOpenAI(**{**defaults, **options})


def test_an_answer_about_a_video() -> None:
    answer = chat().invoke(about(VIDEO.as_uri()))
    assert "yellow" in answer.content.lower() and answer.usage_metadata["total_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"


def test_a_stream_with_usage() -> None:
    whole = None
    for chunk in chat(stream_usage=True).stream("What colour is the star?"):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == chat().invoke("What colour is the star?").content and whole.usage_metadata["output_tokens"] > 0


def test_stop_strings_log_probabilities_and_batches() -> None:
    answer = chat(logprobs=True, top_logprobs=2).invoke("What colour is the star?", stop=["star"])
    assert "star" not in answer.content and "content" in answer.response_metadata["logprobs"]
    assert len(chat().batch(["Hello", "What is this?"])) == 2
    assert asyncio.run(chat().ainvoke("Hello")).content


@pytest.mark.parametrize("method", METHODS[:2])
def test_structured_output_is_an_object(method: str) -> None:
    assert isinstance(chat(max_tokens=100).with_structured_output(Star, method=method).invoke("The star?"), Star)
    strict = chat(max_tokens=100).with_structured_output(Star, method=method, strict=True, include_raw=True).invoke("The star?")
    assert strict["parsing_error"] is None and isinstance(strict["parsed"], Star)
    assert [type(each) for each in chat(max_tokens=100).with_structured_output(Star, method=method).stream("The star?")][
        -1
    ] is Star


def test_structured_output_by_json_mode_is_json() -> None:
    # The demo model knows no JSON: it is led to an end, else it goes on with one name for ever.
    request = urllib.request.Request(
        f"{URL}/tokenize", b'{"prompt": "}"}', {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    )
    brace = json.load(urllib.request.urlopen(request))["tokens"][-1]
    led = chat(max_tokens=200, logit_bias={str(brace): 100})
    assert isinstance(led.with_structured_output(None, method="json_mode").invoke("The star, as JSON."), dict)


def test_a_tool_is_called_and_its_result_goes_back() -> None:
    asked = HumanMessage("Move the star.")
    call = chat(max_tokens=100).bind_tools([move], tool_choice="move").invoke([asked])
    assert isinstance(call, AIMessage) and call.tool_calls[0]["args"]["direction"] in ("left", "right")
    result = move.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage)
    assert chat().bind_tools([move]).invoke([asked, call, result]).content
    pieces = list(chat(max_tokens=100).bind_tools([move], tool_choice="required").stream([asked]))
    assert sum(pieces[1:], pieces[0]).tool_calls[0]["name"] == "move"


def test_the_responses_api_and_text_completions() -> None:
    assert chat(use_responses_api=True).invoke("What colour is the star?").text
    assert "".join(chunk.text for chunk in chat(use_responses_api=True).stream("What colour is the star?"))
    assert isinstance(
        chat(use_responses_api=True, max_tokens=100).with_structured_output(Star, method="json_schema").invoke("The star?"), Star
    )
    assert OpenAI(model=MODEL, base_url=BASE_URL, api_key=KEY, max_tokens=8, temperature=0).invoke("The star is")


def test_faults_are_the_classes_that_chains_catch() -> None:
    with pytest.raises(ContextOverflowError):
        chat().invoke(TOO_LONG)
    with pytest.raises(openai.NotFoundError):
        chat(model="gpt-4").invoke("Hello")
