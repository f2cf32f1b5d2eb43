"""The demo: start everything, ask about a video, measure what can be seen from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from internvideo_server.launch import ServeOptions, start

from ._http_chat import media_part, stream_answer


def run_demo(
    video: Path, question: str, options: ServeOptions, max_tokens: int, report: Callable[[str], None], show: Callable[[str], None]
) -> dict[str, Any]:
    """Start the server, ask one question, stop the server.

    Args:
        video: A local video.
        question: What to ask.
        options: How to start the server.
        max_tokens: Most tokens of the answer.
        report: Called with a line for people at each step of the start.
        show: Called with each piece of the answer's text.

    Returns:
        ``answer``, ``usage`` (token counts) and ``timings``: seconds of the start, at work in each stage, to the first
        token and in all, and ``tokens_per_s`` after the first token (None for fewer than two tokens).

    Raises:
        LaunchError: The server could not be started.
        ApiError: The request failed.
        OSError: The video cannot be read.
    """
    content = [media_part(str(video), {}), {"type": "text", "text": question}]
    began = time.monotonic()
    with start(options, report) as server:
        report(f"asking about {video.name}: {question}")
        ready = time.monotonic()
        before = _stage_seconds(server.metrics_url)
        answer, first_token = "", None
        usage: dict[str, int] = {}
        for part in stream_answer(server.openai_url, content, {"max_tokens": max_tokens}):
            if part.text:
                first_token = first_token or time.monotonic()
                answer += part.text
                show(part.text)
            usage = part.usage or usage
        end = time.monotonic()
        stages = {name: seconds - before.get(name, 0.0) for name, seconds in _stage_seconds(server.metrics_url).items()}
    first_token = first_token or end
    generated = usage.get("completion_tokens", 0) - 1
    seconds = {"start_up_s": ready - began, **{f"{name}_s": value for name, value in stages.items()}}
    seconds |= {"first_token_s": first_token - ready, "total_s": end - ready}
    rate = generated / (end - first_token) if generated > 0 and end > first_token else None
    timings = {name: round(value, 3) for name, value in seconds.items()}
    return {"answer": answer, "usage": usage, "timings": {**timings, "tokens_per_s": rate and round(rate, 1)}}


def _stage_seconds(metrics_url: str) -> dict[str, float]:
    """Seconds that the workers of each stage have been at work so far.

    (Triton's own statistics see only the hand-over to these workers.)
    """
    text = httpx2.get(metrics_url, trust_env=False).raise_for_status().text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {sample.labels["model"]: sample.value for sample in samples if sample.name == "internvideo_work_seconds_total"}
