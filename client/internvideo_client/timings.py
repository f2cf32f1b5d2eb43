"""Where the time of one request went: the ``internvideo`` object of ``usage``, and the ``Server-Timing`` header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOKENS_PER_FRAME = 16

#: Name -> model of the chain and its figure in seconds.
_STAGES = {
    "queue_ms": ("preprocessing", "queue_seconds"),
    "fetch_ms": ("preprocessing", "fetch_seconds"),
    "decode_ms": ("preprocessing", "decode_seconds"),
    "vision_queue_ms": ("vit", "queue_seconds"),
    "vision_ms": ("vit", "work_seconds"),
}


def stage_timings(report: Mapping[str, Any], first_token_s: float | None) -> dict[str, Any]:
    """What is told of a request.

    Args:
        report: As :meth:`TritonChatClient.report` gives it; a part that is missing is left out, and so is what it would say.
        first_token_s: Seconds from the parsed request to its first token, if there was one.

    Returns:
        ``queue_ms``, ``fetch_ms`` (opening, downloading and hashing), ``decode_ms`` (with the resize), ``vision_queue_ms``,
        ``vision_ms``, ``first_token_ms``: milliseconds. ``frames``: of the conversation's media. ``cached_frames``: those of them
        that were not decoded for this request. ``damaged_frames``: those that show damage. ``media``: the same of each medium,
        ``frame_numbers``, ``frame_seconds``, and ``fps`` where it was lowered to fit; there where media are.
    """
    timings: dict[str, Any] = {
        name: round(1000 * report[model].get(figure, 0.0), 3) for name, (model, figure) in _STAGES.items() if report.get(model)
    }
    if first_token_s is not None:
        timings["first_token_ms"] = round(1000 * first_token_s, 3)
    if report.get("preprocessing"):
        media = [{name: value for name, value in medium.items() if value is not None} for medium in report.get("media", [])]
        for name in ("frames", "cached_frames", "damaged_frames"):
            timings[name] = sum(medium.get(name, 0) for medium in media)
        if media:
            timings["media"] = media
    return timings


def prompt_details(timings: Mapping[str, Any]) -> dict[str, int] | None:
    """``prompt_tokens_details``: of the visual tokens, all and those whose frames were cached; None where it is not known."""
    if "frames" not in timings:
        return None
    return {
        "cached_tokens": TOKENS_PER_FRAME * max(timings["cached_frames"], 0),
        "video_tokens": TOKENS_PER_FRAME * timings["frames"],
    }


def server_timing(timings: Mapping[str, Any]) -> dict[str, str]:
    """The header, without an entry for what is not a time: ``queue;dur=0.1, fetch;dur=12.5, ...``."""
    entries = [
        f"{name.removesuffix('_ms').replace('_', '-')};dur={value}" for name, value in timings.items() if name.endswith("_ms")
    ]
    return {"Server-Timing": ", ".join(entries)} if entries else {}
