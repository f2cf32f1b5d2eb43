"""LlamaIndex's OpenAILike."""

import asyncio
from typing import Literal

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from server import BASE_URL, KEY, MODEL

ASKED = [ChatMessage(role="user", content="What colour is the star?")]


class Star(BaseModel):
    """What is known of the star."""

    colour: Literal["red", "yellow", "green"]
    moves: bool


def llm(**options: object) -> OpenAILike:
    known = {"model": MODEL, "api_base": BASE_URL, "api_key": KEY, "max_retries": 0, "max_tokens": 100, "temperature": 0}
    return OpenAILike(**{**known, "is_chat_model": True, "context_window": 8192, **options})


def test_an_answer_whole_and_streamed() -> None:
    whole = llm().chat(ASKED).message.content
    assert whole and list(llm().stream_chat(ASKED))[-1].message.content == whole
    assert asyncio.run(llm().achat(ASKED)).message.content == whole
    assert llm(is_chat_model=False, max_tokens=8).complete("The star is").text


@pytest.mark.parametrize("way", ["is_function_calling_model", "should_use_structured_outputs"])
def test_a_structured_model_answers_with_an_object(way: str) -> None:
    structured = llm(**{way: True}).as_structured_llm(Star)
    assert isinstance(structured.chat(ASKED).raw, Star)
    assert isinstance(structured.complete("The star?").raw, Star)
    assert isinstance(llm(**{way: True}).structured_predict(Star, PromptTemplate("The star?")), Star)
    if way == "should_use_structured_outputs":  # by calls LlamaIndex streams with tool_choice "auto": an answer in words
        assert isinstance(list(structured.stream_chat(ASKED))[-1].raw, Star)


def test_a_tool_is_called() -> None:
    def move(direction: Literal["left", "right"]) -> str:
        """Move the star."""
        return direction

    caller = llm(is_function_calling_model=True)
    answer = caller.chat_with_tools([FunctionTool.from_defaults(move)], user_msg="Move the star.", tool_required=True)
    (call,) = caller.get_tool_calls_from_response(answer)
    assert call.tool_name == "move" and call.tool_kwargs["direction"] in ("left", "right")
