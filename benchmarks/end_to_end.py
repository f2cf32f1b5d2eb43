"""The whole system over HTTP: videos to answers, beside the old system's method or another server.

``python benchmarks/end_to_end.py VIDEO --checkpoint DIR --engine DIR`` starts the server without its caches, then with them, and
asks about clips of the video, each some frames shorter than the last, so that no cache could help a first turn. ``--openai URL``
asks any OpenAI server the same instead, which must be set to as many frames, or is sent them (``--as-images``). For each of
``--num-frames`` and ``--streams``, so many are under way all the time, ``--repeats`` times as many in all (at least 4, at most
``--most-videos``). `first token`: from the request to the first text, the median; `second turn`: the same for a second question
about the same video; `tokens/s`: of all streams, from the first text of all to the last; `videos/s`: answers by the whole time,
in which the first and the last of them have the machine to themselves. Answers are kept from ending before ``--new-tokens``
(``min_tokens``); `fewest tokens` shows it. `waiting`, `decode` and `vision` are what the server says of its stages, medians.
`MiB`: the most that the server's processes (their own memory, and what they share) and all GPUs held meanwhile.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from itertools import count, islice, product
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
import typer

from benchmarks.clips import make_clips, make_pictures
from benchmarks.memory import Peak
from benchmarks.old_method import OldMethod
from benchmarks.report import surroundings, table, write
from benchmarks.served import served
from internvideo_client import load
from internvideo_client.load import Server, media_part
from internvideo_server.settings import ServeSettings, SettingsError, build

QUESTIONS = "详细描述一下这个视频的内容。", "What happens at the end?"
TEXT_TOKENS = 614  # of the prompt for 80 frames and the first question
Medium = Callable[[int, int], list[dict[str, Any]]]  # number and frames -> content parts of a message


def main(
    video: Annotated[Path, typer.Argument(help="a video file")],
    checkpoint: Annotated[Path | None, typer.Option(help="the model (default: the demo model)")] = None,
    engine: Annotated[Path | None, typer.Option(help="of export_llm.py, its slots for as many streams (default: made)")] = None,
    serve: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, a setting of the server that is started (llm_engine=vllm); repeatable")
    ] = None,
    replicas: Annotated[int, typer.Option(help="of it, each on a GPU of its own, behind the router")] = 1,
    openai: Annotated[str, typer.Option(help="URL of a running server (default: this project's is started)")] = "",
    model: Annotated[str, typer.Option(help="its id at --openai")] = "InternVideo2_5",
    as_images: Annotated[bool, typer.Option("--as-images", help="send --openai the frames as pictures")] = False,
    videos: Annotated[
        Path | None,
        typer.Option(help="folder that keeps the clips, asked for by file:// (default: temporary, and sent to --openai)"),
    ] = None,
    caches: Annotated[
        Literal["off", "on", "both", "no server"], typer.Option(help="of the server that is started, one after the other")
    ] = "both",
    streams: Annotated[list[int], typer.Option(help="at once; repeatable")] = [1, 4, 16],  # noqa: B006 (typer's form)
    num_frames: Annotated[list[int], typer.Option(help="of a video; repeatable")] = [80],  # noqa: B006
    new_tokens: Annotated[int, typer.Option()] = 64,
    repeats: Annotated[int, typer.Option(help="videos of each stream, one after the other")] = 4,
    most_videos: Annotated[int, typer.Option(help="of all streams together, where --repeats would make it more")] = 128,
    baseline: Annotated[bool, typer.Option("--baseline", help="run the old method too; needs --checkpoint and --engine")] = False,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "",
) -> None:
    """Measure; print the table, and write it where a name is given, whenever it has a new row."""
    if baseline and not (checkpoint and engine):
        raise typer.BadParameter("--baseline needs --checkpoint and --engine")
    if as_images and not openai:
        raise typer.BadParameter("--as-images is for --openai: this project's server takes videos")
    settings = server_settings(serve or [], checkpoint=checkpoint, engine=engine, num_frames=num_frames[0])
    machine, rows = surroundings("torch", "transformers", "numpy", "vllm"), []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        typer.echo("\n".join(table(rows)[0 if len(rows) == 1 else -1 :]))
        if name:
            notes = f"{new_tokens} tokens of answer; {repeats} videos a stream, 4 to {most_videos} in all."
            write(name, machine, rows, notes)

    questions = {each: max(4, min(repeats * each[1], most_videos)) for each in product(num_frames, streams)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (videos or Path(temporary)).resolve()
        number = 2 + sum(questions.values())
        if as_images:
            pictures = {frames: make_pictures(video, folder / f"{frames}", number, frames) for frames in num_frames}
        else:
            clips = make_clips(video, folder / f"{video.stem}-{max(num_frames)}", number, max(num_frames))
        if openai:

            def medium(number: int, frames: int) -> list[dict[str, Any]]:
                if as_images:
                    return [media_part(picture) for picture in pictures[frames][number]]
                return [media_part(clips[number].as_uri() if videos else clips[number])]

            for row in measure(Server(openai, model=model), medium, questions, 2, new_tokens):
                add({"method": "openai", **row})
        elif caches != "no server":
            settings = settings.model_copy(update={"allowed_local_media_path": (folder,)})
            without = settings.model_copy(update={"frame_cache_mb": 0, "embedding_cache_mb": 0})
            methods = {"off": {"no caches": without}, "on": {"server": settings}}
            for method, options in (methods.get(caches) or methods["off"] | methods["on"]).items():
                with served(options, replicas) as running:
                    machine[f"start s, {method}"] = running.start_s

                    def clip(number: int, frames: int) -> list[dict[str, Any]]:
                        return [media_part(clips[number].as_uri(), {"num_frames": frames})]

                    turns = 1 if method == "no caches" else 2
                    for row in measure(Server(running.url), clip, questions, turns, new_tokens, running.processes):
                        add({"method": method, **row})
    if baseline and checkpoint and engine:
        add(by_old_method(OldMethod(checkpoint, engine, device()), video, num_frames[0], new_tokens, repeats, machine))


def server_settings(given: list[str], **more: Any) -> ServeSettings:
    """The settings of the server; ``given``: NAME=VALUE texts."""
    pairs = [each.partition("=") for each in given]
    try:
        return build(ServeSettings, {**more, **{name: value for name, _, value in pairs}})
    except SettingsError as error:
        raise typer.BadParameter(str(error), param_hint="--serve") from None


def measure(
    server: Server,
    medium: Medium,
    questions: dict[tuple[int, int], int],
    turns: int,
    new_tokens: int,
    processes: Callable[[], list[int]] = list,
) -> Iterator[dict[str, Any]]:
    """The row of each number of frames and of streams, which so many videos are asked about by."""
    numbers = count()
    for _ in range(2):  # the first of all loads what is loaded once
        run(server, [medium(next(numbers), next(iter(questions))[0])], 1, turns, new_tokens)
    for (frames, streams), videos in questions.items():
        asked = [medium(number, frames) for number in islice(numbers, videos)]
        with Peak(processes) as peak:
            row = run(server, asked, streams, turns, new_tokens)
        yield {"frames": frames, "streams": streams, **row, "host MiB": peak.host_mib or "-", "GPU MiB": peak.gpu_mib or "-"}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run(server: Server, media: list[list[dict[str, Any]]], streams: int, turns: int, new_tokens: int) -> dict[str, Any]:
    """One or two turns about all videos, so many of them under way at a time; the figures of the table."""
    settings = {"max_tokens": new_tokens, "min_tokens": new_tokens, "ignore_eos": True, "temperature": 0}
    questions = [
        load.Question([{"role": "user", "content": [{"type": "text", "text": QUESTIONS[0]}, *parts]}], settings)
        for parts in media
    ]
    rounds: list[list[load.Sample]] = []
    for _ in range(turns):
        samples = asyncio.run(load.run(server, questions, streams, len(questions)))
        for sample in samples:
            if sample.error:
                raise SystemExit(f"the server answers: {sample.error}")
            answer = {"role": "assistant", "content": sample.text or "-"}
            questions[sample.number].messages.extend([answer, {"role": "user", "content": QUESTIONS[-1]}])
        rounds.append(samples)
    first = rounds[0]
    arrivals = [moment for sample in first for moment in sample.arrivals]
    began = min(sample.asked for sample in first)
    return {
        "first token s": median(sample.first_token_s for sample in first),
        "last first token s": max(sample.first_token_s for sample in first),
        "second turn s": median(sample.first_token_s for sample in rounds[1]) if turns > 1 else "-",
        "tokens/s": sum(sample.tokens - 1 for sample in first) / (max(arrivals) - min(arrivals)),
        "videos/s": len(first) / (max(sample.ended for sample in first) - began),
        "fewest tokens": min(sample.tokens for sample in first),
        "waiting ms": stage(first, "queue_ms", "vision_queue_ms"),
        "decode ms": stage(first, "decode_ms"),
        "vision ms": stage(first, "vision_ms"),
    }


def stage(samples: list[load.Sample], *names: str) -> float | str:
    """Median of what this project's server says of its stages; another says nothing."""
    reports = [sample.usage["internvideo"] for sample in samples if "internvideo" in sample.usage]
    return median(sum(report[name] for name in names) for report in reports) if reports else "-"


def by_old_method(
    old: OldMethod, video: Path, num_frames: int, new_tokens: int, repeats: int, machine: dict[str, Any]
) -> dict[str, Any]:
    """The row of the old method: one request after the other, the second turn as the first."""
    runs = []
    for number in range(repeats + 1):
        old.answer(video, num_frames, TEXT_TOKENS, new_tokens)
        if number:  # the first loads kernels
            runs.append(dict(old.seconds))
    steps = {step: median(seconds[step] for seconds in runs) for step in runs[0]}
    machine["old method's steps s"] = steps
    first = sum(steps.values()) - steps["generate"]
    return {
        "method": "old method",
        "frames": num_frames,
        "streams": 1,
        "first token s": first,
        "last first token s": first,
        "second turn s": first,
        "tokens/s": (new_tokens - 1) / (steps["generate"] - steps["prefill"]),
        "videos/s": 1 / (first - steps["prefill"] + steps["generate"]),
        "fewest tokens": new_tokens,
        "waiting ms": 0.0,
        "decode ms": steps["decode, resize"] * 1e3,
        "vision ms": steps["tower"] * 1e3,
        "host MiB": "-",
        "GPU MiB": "-",
    }


if __name__ == "__main__":
    typer.run(main)
