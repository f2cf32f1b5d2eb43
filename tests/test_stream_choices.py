"""Several answers of one request in one stream: any interleaving, any split, any stop strings; each choice is as if alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from internvideo_client.adapter.generation import Answer
from internvideo_client.adapter.routes._chat_json import AnswerNames, ChatJson
from internvideo_client.triton import TokenBatch
from tests.test_stream_properties import STOPS, TOKENS, VOCABULARY, answered, request

LIMIT = 30  # tokens of an answer; none of these is longer


class Scripted:
    """A generation whose batches are given; each inner list comes at once."""

    request_id = "scripted"

    def __init__(self, script: list[list[TokenBatch]]) -> None:
        self._script = script

    async def __aenter__(self) -> Scripted:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def batches(self, heartbeat_s: float | None = None) -> AsyncIterator[list[TokenBatch]]:
        for batches in self._script:
            yield batches

    def ask_report(self) -> asyncio.Task[dict[str, Any]]:
        async def nothing() -> dict[str, Any]:
            return {}

        return asyncio.get_running_loop().create_task(nothing())


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[list[list[int]], list[list[TokenBatch]]]:
    """The ids of 2 to 4 answers, and an order in which they may come."""
    answers = draw(st.lists(TOKENS, min_size=2, max_size=4))
    order = draw(st.permutations([number for number, ids in enumerate(answers) for _ in ids]))
    at, batches = [0] * len(answers), []
    for end in draw(st.lists(st.integers(1, 4), min_size=len(order), max_size=len(order))):
        if not order:
            break
        # The next tokens of whoever is next in turn, as one batch.
        number = order[0]
        size = min(end, len(answers[number]) - at[number])
        if size:
            batches.append(TokenBatch(answers[number][at[number] :][:size], [-0.5] * size, prompt_tokens=10, sequence=number))
            at[number] += size
        order = order[1:]
    cuts = sorted({0, len(batches), *draw(st.lists(st.integers(0, len(batches)), max_size=4))})
    return answers, [batches[start:end] for start, end in pairwise(cuts)]


def writer(answers: list[list[int]], script: list[list[TokenBatch]], **fields: Any) -> tuple[Answer, ChatJson]:
    body = request(n=len(answers), logprobs=True, **fields)
    answer = Answer(VOCABULARY, body, Scripted(script), 1000, LIMIT, want_entries=True)  # type: ignore[arg-type]
    return answer, ChatJson(answer, body, AnswerNames("id", "m", "fp"))


def streamed(answers: list[list[int]], script: list[list[TokenBatch]], **fields: Any) -> list[dict[str, Any]]:
    async def chunks() -> list[str]:
        answer, out = writer(answers, script, stream=True, stream_options={"include_usage": True}, **fields)
        return [chunk async for together in out.chunks(answer.pieces()) for chunk in together]

    *found, last = asyncio.run(chunks())
    assert last == "[DONE]"
    return [json.loads(chunk) for chunk in found]


@given(interleaved(), STOPS)
def test_each_choice_of_a_stream_is_as_if_it_were_alone(
    drawn: tuple[list[list[int]], list[list[TokenBatch]]], stop: list[str]
) -> None:
    answers, script = drawn
    *chunks, usage = streamed(answers, script, stop=stop)
    assert usage["choices"] == [] and usage["usage"]["prompt_tokens"] in (0, 10)
    tokens = 0
    for number, ids in enumerate(answers):
        text, entries, alone = answered(ids, [], stop=stop)
        of_it = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == number]
        assert "".join(choice["delta"].get("content", "") for choice in of_it) == text
        told = [entry for choice in of_it if choice.get("logprobs") for entry in choice["logprobs"]["content"]]
        assert len(told) == len(entries)
        assert [choice["delta"].get("role") for choice in of_it] == ["assistant"] + [None] * (len(of_it) - 1)
        assert [choice["finish_reason"] for choice in of_it] == [None] * (len(of_it) - 1) + ["stop"]
        assert of_it[-1].get("stop_reason") == alone.stop_reason
        tokens += alone.tokens
    assert usage["usage"]["completion_tokens"] == tokens


@given(interleaved(), STOPS)
def test_a_plain_answer_has_what_the_stream_has(drawn: tuple[list[list[int]], list[list[TokenBatch]]], stop: list[str]) -> None:
    answers, script = drawn

    async def whole() -> dict[str, Any]:
        answer, out = writer(answers, script, stop=stop)
        return await out.whole(answer.pieces())

    *chunks, _ = streamed(answers, script, stop=stop)
    for choice in asyncio.run(whole())["choices"]:
        of_it = [each for chunk in chunks for each in chunk["choices"] if each["index"] == choice["index"]]
        assert "".join(each["delta"].get("content", "") for each in of_it) == choice["message"]["content"]
        assert [entry for each in of_it if each.get("logprobs") for entry in each["logprobs"]["content"]] == (
            choice["logprobs"]["content"]
        )
        assert of_it[-1]["finish_reason"] == choice["finish_reason"]
