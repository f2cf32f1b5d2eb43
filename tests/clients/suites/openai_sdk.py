"""The openai SDK as it comes, of both generations."""

import asyncio
import json
from collections.abc import Iterator
from typing import Literal

import openai
import pydantic
import pytest

from server import BASE_URL, KEY, MISSING, MODEL, QUESTION, TOO_LONG, VIDEO, about, data_url


class Star(pydantic.BaseModel):
    colour: Literal["red", "yellow", "green"]
    moves: bool


class move(pydantic.BaseModel):  # noqa: N801 - the function's name
    """Move a shape."""

    direction: Literal["left", "right"]


MOVE = {"name": "move", "description": "Move a shape.", "parameters": {**move.model_json_schema(), "additionalProperties": False}}
TOOL = {"type": "function", "function": MOVE}


@pytest.fixture
def sdk() -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()][:2] == [MODEL, "video-chat"]
    assert sdk.models.retrieve("OpenGVLab/InternVideo2_5_Chat_8B").id


@pytest.mark.parametrize("url", [VIDEO.as_uri(), data_url()], ids=["path", "data"])
def test_an_answer_about_a_video_and_its_usage(sdk: openai.OpenAI, url: str) -> None:
    answer = sdk.chat.completions.create(model=MODEL, messages=about(url), max_tokens=16, seed=1)
    assert "yellow" in answer.choices[0].message.content.lower() and answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens > 0
    assert usage.prompt_tokens_details.model_dump()["video_tokens"] == 8 * 16
    assert answer.system_fingerprint.startswith("fp_") and answer._request_id


def test_a_stream_says_what_the_plain_answer_says(sdk: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": about(VIDEO.as_uri()), "max_tokens": 16}
    plain = sdk.chat.completions.create(**asked)
    chunks = list(sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_the_sdks_own_reader_of_streams(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(model=MODEL, messages=QUESTION, max_tokens=16, logprobs=True, top_logprobs=2) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds and answer.choices[0].message.content


def test_log_probabilities_end_where_the_text_ends(sdk: openai.OpenAI) -> None:
    for stop in (None, ["star"]):
        answer = sdk.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=16, logprobs=True, top_logprobs=3, stop=stop
        )
        choice = answer.choices[0]
        assert "star" not in (choice.message.content if stop else "")
        told = b"".join(bytes(each.bytes) for each in choice.logprobs.content).decode()
        assert told.strip().startswith(choice.message.content.strip()) or choice.message.content == ""
        assert all(each.logprob <= 0 and len(each.top_logprobs) == 3 for each in choice.logprobs.content)


def test_several_answers(sdk: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 8, "n": 3, "temperature": 1.5, "seed": 3}
    plain = [choice.message.content for choice in sdk.chat.completions.create(**asked).choices]
    streamed = ["", "", ""]
    for chunk in sdk.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert len(plain) == 3 and streamed == plain


@pytest.mark.parametrize("messages", [QUESTION, about(VIDEO.as_uri())], ids=["text", "video"])
def test_parse_gives_an_object(sdk: openai.OpenAI, messages: list) -> None:
    answer = sdk.chat.completions.parse(model=MODEL, messages=messages, response_format=Star, max_tokens=100)
    assert isinstance(answer.choices[0].message.parsed, Star)
    with sdk.chat.completions.stream(model=MODEL, messages=messages, response_format=Star, max_tokens=100) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Star)


def test_a_limit_that_cuts_an_object_off_is_told_by_the_sdk(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        sdk.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Star, max_tokens=2)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "move"}}], ids=["required", "named"])
def test_a_function_is_called_and_its_result_answered(sdk: openai.OpenAI, choice: object) -> None:
    tools = [openai.pydantic_function_tool(move)]
    answer = sdk.chat.completions.parse(model=MODEL, messages=QUESTION, tools=tools, tool_choice=choice, max_tokens=100)
    message = answer.choices[0].message
    assert isinstance(message.tool_calls[0].function.parsed_arguments, move)
    assert answer.choices[0].finish_reason == "tool_calls"
    with sdk.chat.completions.stream(model=MODEL, messages=QUESTION, tools=tools, tool_choice=choice, max_tokens=100) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, move)
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "moved"}
    history = [*QUESTION, message.model_dump(exclude_none=True), result]
    assert sdk.chat.completions.create(model=MODEL, messages=history, tools=tools, max_tokens=8).choices[0].message.content


def test_two_functions_of_which_the_model_calls_one(sdk: openai.OpenAI) -> None:
    other = {"type": "function", "function": {"name": "paint", "parameters": {"type": "object", "properties": {}}}}
    answer = sdk.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=[TOOL, other], tool_choice="required", max_tokens=100
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name in ("move", "paint") and isinstance(json.loads(call.function.arguments), dict)


def test_vllms_fields_go_through_extra_body(sdk: openai.OpenAI) -> None:
    def told(**extra: object) -> str:
        return (
            sdk.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=32, extra_body=extra)
            .choices[0]
            .message.content
        )

    assert told(structured_outputs={"choice": ["alpha", "beta"]}) in ("alpha", "beta")
    assert told(guided_regex="[0-9]{3}").isdecimal()
    assert told(top_k=5, min_p=0.1, repetition_penalty=1.1, min_tokens=2, skip_special_tokens=True)
    with pytest.raises(openai.BadRequestError, match="length_penalty"):
        told(length_penalty=2.0)


def test_files(sdk: openai.OpenAI) -> None:
    with VIDEO.open("rb") as source:
        file = sdk.files.create(file=source, purpose="vision")
    assert file.bytes == VIDEO.stat().st_size and file.id in [each.id for each in sdk.files.list()]
    assert sdk.files.retrieve(file.id).filename == VIDEO.name and sdk.files.content(file.id).read() == VIDEO.read_bytes()
    answer = sdk.chat.completions.create(model=MODEL, messages=about(f"file-id:{file.id}"), max_tokens=16)
    assert "yellow" in answer.choices[0].message.content.lower()
    part = [{"type": "file", "file": {"file_id": file.id}}, {"type": "text", "text": "What colour is the star?"}]
    assert sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": part}], max_tokens=4)
    assert sdk.files.delete(file.id).deleted
    with pytest.raises(openai.BadRequestError, match="no file"):
        sdk.chat.completions.create(model=MODEL, messages=about(f"file-id:{file.id}"), max_tokens=4)


def test_responses_and_the_ones_that_go_on_from_them(sdk: openai.OpenAI) -> None:
    content = [{"type": "input_video", "video_url": data_url()}, {"type": "input_text", "text": "What colour is the star?"}]
    first = sdk.responses.create(model=MODEL, input=[{"role": "user", "content": content}], max_output_tokens=16)
    assert "yellow" in first.output_text.lower() and first.status == "completed" and first.usage.total_tokens
    again = sdk.responses.create(model=MODEL, input="And the triangle?", previous_response_id=first.id, max_output_tokens=8)
    assert again.usage.input_tokens > first.usage.input_tokens
    assert sdk.responses.retrieve(first.id).output_text == first.output_text
    assert [item.type for item in sdk.responses.input_items.list(first.id)] == ["message"]
    sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(first.id)


def test_responses_in_events_parsed_and_with_calls(sdk: openai.OpenAI) -> None:
    with sdk.responses.stream(model=MODEL, input="What colour is the star?", max_output_tokens=16) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text != ""
    parsed = sdk.responses.parse(model=MODEL, input="The star?", text_format=Star, max_output_tokens=100)
    assert isinstance(parsed.output_parsed, Star)
    tool = {"type": "function", **MOVE, "strict": True}
    called = sdk.responses.create(model=MODEL, input="Move it", tools=[tool], tool_choice="required", max_output_tokens=100)
    (call,) = called.output
    assert call.type == "function_call" and set(json.loads(call.arguments)) == {"direction"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "moved"}
    after = sdk.responses.create(model=MODEL, input=[result], previous_response_id=called.id, max_output_tokens=8)
    assert after.output_text


def test_completions_of_a_text(sdk: openai.OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "The star is", "max_tokens": 8}
    plain, echoed = (sdk.completions.create(**asked, **more) for more in ({"logprobs": 2}, {"echo": True}))
    assert len(plain.choices[0].logprobs.tokens) == plain.usage.completion_tokens
    assert echoed.choices[0].text == "The star is" + plain.choices[0].text
    streamed = "".join(chunk.choices[0].text for chunk in sdk.completions.create(**asked, stream=True))
    assert streamed == plain.choices[0].text


def test_each_fault_is_the_class_that_a_program_catches(sdk: openai.OpenAI) -> None:
    def fails(kind: type[openai.APIStatusError], **fields: object) -> openai.APIStatusError:
        with pytest.raises(kind) as caught:
            sdk.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "max_tokens": 4, **fields})
        return caught.value

    assert fails(openai.BadRequestError, temperature=5).param == "temperature"
    assert fails(openai.BadRequestError, messages=TOO_LONG).code == "context_length_exceeded"
    assert fails(openai.NotFoundError, model="gpt-4").code == "model_not_found"
    assert fails(openai.APIStatusError, messages=about(MISSING)).status_code in (400, 422)
    assert fails(openai.PermissionDeniedError, messages=about("file:///etc/passwd")).status_code == 403
    with openai.OpenAI(base_url=BASE_URL, api_key="wrong", max_retries=0) as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_an_error_of_a_stream_comes_as_an_exception(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError):
        list(sdk.chat.completions.create(model=MODEL, messages=about(MISSING), stream=True))


def test_a_clients_own_timeout_and_its_retries() -> None:
    with (
        openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=1, timeout=0.05) as hasty,
        pytest.raises(openai.APITimeoutError),
    ):
        hasty.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=2000, extra_body={"ignore_eos": True})
    with openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=2) as patient:
        raw = patient.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=4)
        assert raw.retries_taken == 0 and raw.headers["x-request-id"]


def test_many_at_once_and_one_that_leaves() -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0) as sdk:
            asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 8}
            answers = await asyncio.gather(*(sdk.chat.completions.create(**asked) for _ in range(8)))
            assert len({answer.choices[0].message.content for answer in answers}) == 1
            stream = await sdk.chat.completions.create(
                **{**asked, "max_tokens": 500}, extra_body={"ignore_eos": True}, stream=True
            )
            async for _ in stream:
                break
            await stream.close()
            assert (await sdk.chat.completions.create(**asked)).choices[0].message.content

    asyncio.run(ask())
