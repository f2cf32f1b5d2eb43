"""Where the time of one request went: the ``internvideo`` object of ``usage``, and the ``Server-Timing`` header."""

from __future__ import annotations

from collections.abc import Mapping

#: Name -> model of the chain and its figure in seconds.
_STAGES = {
    "queue_ms": ("preprocessing", "queue_seconds"),
    "fetch_ms": ("preprocessing", "fetch_seconds"),
    "decode_ms": ("preprocessing", "decode_seconds"),
    "vision_queue_ms": ("vit", "queue_seconds"),
    "vision_ms": ("vit", "work_seconds"),
}


def stage_timings(figures: Mapping[str, Mapping[str, float]], first_token_s: float | None) -> dict[str, int | float]:
    """What is told of a request.

    Args:
        figures: Of each model, as :meth:`TritonChatClient.figures` gives them; a model that did not answer is left out, and so
            is then what it would have said.
        first_token_s: Seconds from the parsed request to its first token, if there was one.

    Returns:
        ``queue_ms``, ``fetch_ms`` (opening, downloading and hashing), ``decode_ms`` (with the resize), ``vision_queue_ms``,
        ``vision_ms``, ``first_token_ms``: milliseconds. ``frames``: of the conversation's media. ``cached_frames``: those of them
        that were not decoded for this request.
    """
    timings: dict[str, int | float] = {
        name: round(1000 * figures[model].get(figure, 0.0), 3) for name, (model, figure) in _STAGES.items() if figures.get(model)
    }
    if first_token_s is not None:
        timings["first_token_ms"] = round(1000 * first_token_s, 3)
    if preprocessing := figures.get("preprocessing"):
        frames = round(preprocessing.get("frames_delivered", 0))
        timings["frames"] = frames
        timings["cached_frames"] = frames - round(preprocessing.get("frames_decoded", 0))
    return timings


def server_timing(timings: Mapping[str, float]) -> dict[str, str]:
    """The header, without an entry for what is not a time: ``queue;dur=0.1, fetch;dur=12.5, ...``."""
    entries = [
        f"{name.removesuffix('_ms').replace('_', '-')};dur={value}" for name, value in timings.items() if name.endswith("_ms")
    ]
    return {"Server-Timing": ", ".join(entries)} if entries else {}
