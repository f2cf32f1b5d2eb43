"""litellm, alone and as a router before two deployments."""

import asyncio
import contextlib
import json

import litellm
import openai
import pytest

from server import BASE_URL, KEY, MISSING, MODEL, QUESTION, TOO_LONG, VIDEO, about

ASKED = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": KEY, "max_tokens": 16, "num_retries": 0}
TOOL = {
    "type": "function",
    "function": {
        "name": "move",
        "parameters": {"type": "object", "properties": {"to": {"enum": ["left", "right"]}}, "required": ["to"]},
    },
}


def deployment(name: str, of: str) -> dict:
    params = {"model": f"openai/{name}", "api_base": BASE_URL, "api_key": KEY}
    return {"model_name": of, "litellm_params": params, "model_info": {"id": name}}


def test_an_answer_about_a_video() -> None:
    answer = litellm.completion(messages=about(VIDEO.as_uri()), **ASKED)
    assert "yellow" in answer.choices[0].message.content.lower() and answer.usage.total_tokens > 0
    assert asyncio.run(litellm.acompletion(messages=QUESTION, **ASKED)).choices[0].message.content


def test_a_stream_with_usage() -> None:
    chunks = list(litellm.completion(messages=QUESTION, stream=True, stream_options={"include_usage": True}, **ASKED))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens > 0


def test_json_and_tools() -> None:
    asked = {**ASKED, "max_tokens": 100}
    schema = {"type": "object", "properties": {"star": {"type": "boolean"}}, "required": ["star"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "star", "schema": schema, "strict": True}}
    answer = litellm.completion(messages=QUESTION, response_format=form, **asked)
    assert isinstance(json.loads(answer.choices[0].message.content)["star"], bool)
    call = litellm.completion(messages=QUESTION, tools=[TOOL], tool_choice="required", **asked).choices[0]
    assert json.loads(call.message.tool_calls[0].function.arguments)["to"] in ("left", "right")


def test_faults_are_the_classes_that_routers_know() -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=TOO_LONG, **ASKED)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=QUESTION, **{**ASKED, "api_key": "wrong"})
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=QUESTION, **{**ASKED, "temperature": 9})


def closed(router: litellm.Router, names: list[str]) -> list:
    return asyncio.run(router.cooldown_cache.async_get_active_cooldowns(model_ids=names, parent_otel_span=None))


def test_a_users_bad_media_close_no_deployment_for_others() -> None:
    names = [MODEL, "video-chat"]
    router = litellm.Router([deployment(name, "videos") for name in names], num_retries=0, allowed_fails=0, cooldown_time=600)
    for url in ["file:///etc/passwd", MISSING, "data:video/mp4;base64,AAAA", "http://127.0.0.1:1/x.mp4", "nothing"] * 2:
        with pytest.raises(openai.APIError):  # which litellm's own are
            router.completion("videos", messages=about(url), max_tokens=4)
    assert closed(router, names) == []
    assert router.completion("videos", messages=QUESTION, max_tokens=4).choices


def test_a_deployment_whose_model_is_not_there_is_closed() -> None:
    router = litellm.Router(
        [deployment("gpt-4", "videos"), deployment(MODEL, "videos")], num_retries=0, allowed_fails=0, cooldown_time=600
    )
    for _ in range(8):
        with contextlib.suppress(litellm.NotFoundError):
            router.completion("videos", messages=QUESTION, max_tokens=4)
    assert router.completion("videos", messages=QUESTION, max_tokens=4).choices
    assert [name for name, _ in closed(router, ["gpt-4", MODEL])] == ["gpt-4"]


def test_a_context_overflow_goes_to_the_model_that_is_named_for_it() -> None:
    router = litellm.Router(
        [deployment(MODEL, "short"), deployment("video-chat", "long")],
        num_retries=0,
        context_window_fallbacks=[{"short": ["long"]}],
    )
    with pytest.raises(litellm.ContextWindowExceededError):
        router.completion("short", messages=TOO_LONG)
    assert router.completion("short", messages=QUESTION, max_tokens=4).choices
