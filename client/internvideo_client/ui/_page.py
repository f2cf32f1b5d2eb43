"""The page: a chat about videos, with options beside it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from .._errors import ApiError
from .._http_chat import stream_conversation
from ._conversation import Turn, messages, sampled
from ._texts import CHINESE, ENGLISH, timing_table, timing_title, words_for

_LOG = logging.getLogger(__name__)
I18N = gr.I18n(en=ENGLISH, zh=CHINESE, **{"zh-CN": CHINESE, "zh-TW": CHINESE})

#: What an event changes: the entry, the chat as it is shown, and the conversation.
Update = tuple[Any, Any, Any]


def build_page(url: str, examples: Sequence[tuple[str, Path]]) -> gr.Blocks:
    """The page.

    Args:
        url: Base URL of the OpenAI API.
        examples: Questions and the videos that they are about, offered while the chat is empty.
    """
    with gr.Blocks(title=ENGLISH["title"], analytics_enabled=False, fill_height=True, delete_cache=(3600, 86400)) as page:
        # The conversation stays here: what a browser sends back is never taken for it, least of all the paths in it.
        turns = gr.State([])
        with gr.Row(equal_height=False, scale=1):
            with gr.Column(scale=4):
                chat = gr.Chatbot(
                    elem_id="chat",
                    show_label=False,
                    height="calc(100vh - 190px)",
                    placeholder=I18N("welcome"),
                    buttons=["copy"],
                    feedback_options=None,
                    allow_tags=False,
                    examples=[{"text": question, "files": [str(video)]} for question, video in examples],
                )
                entry = gr.MultimodalTextbox(
                    show_label=False,
                    placeholder=I18N("entry"),
                    file_types=["video", "image"],
                    file_count="multiple",
                    max_plain_text_length=100_000,
                    autofocus=True,
                )
            with gr.Column(scale=1, min_width=230):
                options = [
                    gr.Number(0, label=I18N("num_frames"), info=I18N("num_frames_info"), precision=0, minimum=0, step=4),
                    gr.Number(0, label=I18N("start"), minimum=0),
                    gr.Number(0, label=I18N("end"), info=I18N("end_info"), minimum=0),
                    gr.Number(0, label=I18N("max_tokens"), info=I18N("max_tokens_info"), precision=0, minimum=0),
                    gr.Slider(0, 2, 0, step=0.05, label=I18N("temperature"), info=I18N("temperature_info")),
                ]

        async def ask(
            request: gr.Request, typed: dict[str, Any], before: list[Turn], *values: float | None
        ) -> AsyncGenerator[Update]:
            words = words_for(request.headers.get("accept-language"))
            turn = Turn.typed(typed["text"], typed["files"])
            if turn.media and not turn.text:
                turn = replace(turn, text=words["describe"])
            if turn.text:
                kept = [each for each in before if each.error is None]
                async with aclosing(answered(url, [*kept, turn], words, *values)) as updates:
                    async for update in updates:
                        yield update

        async def ask_again(request: gr.Request, before: list[Turn], *values: float | None) -> AsyncGenerator[Update]:
            if before:
                again = replace(before[-1], answer="", usage=None, ended=None, error=None)
                words = words_for(request.headers.get("accept-language"))
                async with aclosing(answered(url, [*before[:-1], again], words, *values)) as updates:
                    async for update in updates:
                        yield update

        def stop(request: gr.Request, before: list[Turn]) -> Update:
            words = words_for(request.headers.get("accept-language"))
            if before and before[-1].ended is None and before[-1].error is None:
                if not before[-1].answer:
                    return take_back(request, before)
                before = [*before[:-1], replace(before[-1], ended="stopped")]
            return entry_for(None), shown(before, words), before

        def take_back(request: gr.Request, before: list[Turn]) -> Update:
            words = words_for(request.headers.get("accept-language"))
            return entry_for(before[-1] if before else None), shown(before[:-1], words), before[:-1]

        outputs = [entry, chat, turns]
        common: dict[str, Any] = {"outputs": outputs, "concurrency_limit": None, "show_progress": "hidden"}
        running = [
            entry.submit(ask, [entry, turns, *options], api_name="ask", **common),
            chat.retry(ask_again, [turns, *options], api_name="ask_again", **common),
        ]
        entry.stop(stop, [turns], api_name="stop", cancels=running, queue=False, **common)
        chat.undo(take_back, [turns], api_name="take_back", queue=False, **common)
        chat.clear(list, None, [turns], api_name="clear", queue=False)
        chat.example_select(_chosen, None, [entry], api_visibility="private", queue=False)
    return page


async def answered(
    url: str,
    turns: Sequence[Turn],
    words: Mapping[str, str],
    num_frames: float | None = None,
    start: float | None = None,
    end: float | None = None,
    max_tokens: float | None = None,
    temperature: float | None = None,
) -> AsyncGenerator[Update]:
    """Ask for the answer to the last turn, and show it as it comes.

    After an error the question is back in the entry, with its videos, to be mended and asked again.
    An option that is 0 or None is not sent.
    """
    turns = sampled(turns, _given(num_frames=num_frames, start=start, end=end))
    *before, turn = turns
    yield entry_for(None, busy=True), shown(turns, words), turns
    settings = _given(max_tokens=max_tokens, temperature=temperature)
    try:
        async with aclosing(stream_conversation(url, messages(turns), settings)) as parts:
            async for part in parts:
                turn = replace(
                    turn, answer=turn.answer + part.text, usage=part.usage or turn.usage, ended=part.finish_reason or turn.ended
                )
                yield gr.skip(), shown([*before, turn], words), [*before, turn]
    except Exception as error:
        failed = [*before, replace(turn, error=_sentence(error, words))]
        yield entry_for(turn), shown(failed, words), failed
    else:
        yield entry_for(None), shown([*before, turn], words), [*before, turn]


def shown(turns: Sequence[Turn], words: Mapping[str, str]) -> list[dict[str, Any]]:
    """The conversation as the chat shows it."""
    result = []
    for turn in turns:
        files = [{"path": path} for path in turn.files]
        result.append({"role": "user", "content": [*files, {"type": "text", "text": turn.as_typed}]})
        if turn.answer:
            result.append(_said(turn.answer))
        if turn.error:
            result.append(_said(f"⚠️ {turn.error}"))
        notes = [words[name] for name, ended in (("cut", "length"), ("stopped", "stopped")) if turn.ended == ended]
        if turn.usage:
            notes.insert(0, timing_title(turn.usage, words))
        if notes:
            details = timing_table(turn.usage, words) if turn.usage else ""
            result.append(_said(details) | {"metadata": {"title": " · ".join(notes), "status": "done"}})
    return result


def entry_for(turn: Turn | None, *, busy: bool = False) -> gr.MultimodalTextbox:
    """The entry with a turn's question in it, or empty; with the button for stopping while an answer comes."""
    value = {"text": turn.as_typed, "files": list(turn.files)} if turn else None
    return gr.MultimodalTextbox(value=value, submit_btn=not busy, stop_btn=busy)


def _sentence(error: Exception, words: Mapping[str, str]) -> str:
    """What a person is told; nothing of a fault that nobody foresaw, which goes to the log."""
    if isinstance(error, ApiError):
        return error.message
    if isinstance(error, OSError):
        return words["gone"]
    _LOG.error("an answer failed", exc_info=error)
    return words["bug"]


def _said(text: str) -> dict[str, Any]:
    # As an object: a bare string would lose its leading spaces, and the next turn the server's prefix cache.
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _chosen(event: gr.SelectData) -> dict[str, Any]:
    return {"text": event.value["text"], "files": [file["path"] for file in event.value.get("files", [])]}


def _given(**options: float | None) -> dict[str, int | float]:
    return {name: value for name, value in options.items() if value}
