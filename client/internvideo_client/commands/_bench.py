"""``internvideo bench``: first token, time between tokens and throughput over a sweep of streams."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TaskID

from internvideo_client import load
from internvideo_client.http_chat import Server, media_part

from ._shared import DEFAULT_URL, MODEL_ID, ApiKey, Model, Url, bar, failed, reported, show


def bench(
    video: Annotated[list[str] | None, typer.Argument(help="videos to ask about in turn (default: text alone)")] = None,
    question: Annotated[str, typer.Option(help="what to ask")] = "Describe the video in detail.",
    streams: Annotated[str, typer.Option(help="how many at once: a list, 1,4,16")] = "1,4,16",
    requests: Annotated[
        int, typer.Option(min=1, help="answers for each number of streams; at least two for each stream are asked")
    ] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens of an answer")] = 64,
    num_frames: Annotated[int | None, typer.Option(help="frames of each video (default: as the server is set)")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Model = MODEL_ID,
    as_json: Annotated[Path | None, typer.Option("--json", help="write the figures to this file")] = None,
    plot: Annotated[Path | None, typer.Option(help="write a plot to this PNG (needs matplotlib)")] = None,
) -> None:
    """Measure any OpenAI server: this one, or vLLM beside it. Prints a Markdown table."""
    try:
        sweep = [int(each) for each in streams.split(",")]
    except ValueError:
        sweep = [0]
    if min(sweep) < 1:
        raise failed(f"--streams {streams}: give numbers from 1 on with commas between, such as 1,4,16")
    if plot and plot.suffix.lower() != ".png":
        raise failed(f"--plot {plot}: a name that ends with .png")
    with reported():
        for file in filter(None, (as_json, plot)):
            file.touch()  # what cannot be written is known before anything is measured
        server = Server(url, api_key, model)
        options = {} if num_frames is None else {"num_frames": num_frames}
        settings = {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "min_tokens": max_tokens}
        contents = [[media_part(each, options)] for each in video or []] or [[]]
        questions = [
            load.Question([{"role": "user", "content": [*content, {"type": "text", "text": question}]}], settings)
            for content in contents
        ]
        results = []
        with bar() as progress:
            for number in sweep:
                count = max(requests, 2 * number)
                task = progress.add_task(f"{number} streams", total=count)
                advance = partial(_advance, progress, task)
                samples = asyncio.run(load.run(server, questions, number, count, advance))
                if all(sample.error for sample in samples):
                    raise samples[0].error  # type: ignore[misc]
                results.append(load.Figures.of(number, samples))
        show(table(results))
        if as_json:
            document = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "url": url,
                "model": model,
                "results": [dataclasses.asdict(each) for each in results],
            }
            as_json.write_text(json.dumps(document, indent=2) + "\n")
        if plot:
            draw(results, plot)


def _advance(progress: Progress, task: TaskID, sample: load.Sample) -> None:
    progress.advance(task)


def table(results: list[load.Figures]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| streams | first token p50 / p99, s | between tokens p50 / p99, ms | answers/s | tokens/s | errors |",
        "|---|---|---|---|---|---|",
    ]
    for each in results:
        first = f"{each.first_token_p50:.3f} / {each.first_token_p99:.3f}"
        between = f"{1000 * each.between_tokens_p50:.1f} / {1000 * each.between_tokens_p99:.1f}"
        lines.append(
            f"| {each.streams} | {first} | {between} | {each.answers_per_s:.2f} | {each.tokens_per_s:.0f} | {each.errors} |"
        )
    return "\n".join(lines) + "\n"


def draw(results: list[load.Figures], path: Path) -> None:
    """Throughput and first token over the number of streams."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise failed("--plot needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    throughput, first = figure.subplots(1, 2)
    numbers = [each.streams for each in results]
    throughput.plot(numbers, [each.tokens_per_s for each in results], "o-")
    throughput.set(xlabel="streams", ylabel="tokens/s", ylim=(0, None))
    for share, values in (
        ("p50", [each.first_token_p50 for each in results]),
        ("p99", [each.first_token_p99 for each in results]),
    ):
        first.plot(numbers, values, "o-", label=share)
    first.set(xlabel="streams", ylabel="first token, s", ylim=(0, None))
    first.legend()
    figure.savefig(path, dpi=150)
