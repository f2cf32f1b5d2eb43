"""The demo: start everything, ask about a video, measure what can be seen from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from internvideo_client.http_chat import Server, media_part, stream
from internvideo_server.launch import start
from internvideo_server.settings import ServeSettings


def run_demo(
    video: Path,
    question: str,
    options: ServeSettings,
    max_tokens: int,
    report: Callable[[str], None],
    show: Callable[[str], None],
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
        ``answer``, ``usage`` and ``timings``: seconds of the start, in the stages that the server tells, to the first token
        and in all, and ``tokens_per_s`` after the first token (None for fewer than two tokens).

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
        answer, first_token = "", None
        usage: dict[str, Any] = {}
        for part in stream(Server(server.openai_url), [{"role": "user", "content": content}], {"max_tokens": max_tokens}):
            if part.text:
                first_token = first_token or time.monotonic()
                answer += part.text
                show(part.text)
            usage = part.usage or usage
        end = time.monotonic()
    first_token = first_token or end
    generated = usage.get("completion_tokens", 0) - 1
    stages = usage.get("internvideo", {})
    seconds = {"start_up_s": ready - began}
    seconds |= {f"{name}_s": stages[f"{name}_ms"] / 1000 for name in ("fetch", "decode", "vision") if f"{name}_ms" in stages}
    seconds |= {"first_token_s": first_token - ready, "total_s": end - ready}
    rate = generated / (end - first_token) if generated > 0 and end > first_token else None
    timings = {name: round(value, 3) for name, value in seconds.items()}
    return {"answer": answer, "usage": usage, "timings": {**timings, "tokens_per_s": rate and round(rate, 1)}}
