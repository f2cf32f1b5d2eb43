"""What a long video costs the others: text streams and short videos beside one long video after another.

``python benchmarks/neighbours.py VIDEO --checkpoint DIR --engine DIR``: eight text streams answer all the time, and one video of
16 frames is asked about after another. For each of ``--num-frames``, ``--videos`` of so many frames are asked about in a row
meanwhile; 0: none, for ``--seconds``. `gap`: between two pieces of a text stream; `short`: first token of a video of 16 frames.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx2
import typer

from benchmarks.clips import make_clips
from benchmarks.end_to_end import QUESTIONS, server_settings
from benchmarks.report import surroundings, table, write
from benchmarks.served import served
from internvideo_client.load import Question, Sample, Server, ask, media_part, percentile

SHORT = 16  # frames
CLIPS = 150  # more than are asked about on a GPU, so that no cache could help
TEXT = "Write a long story about the sea."


def main(
    video: Annotated[Path, typer.Argument(help="a video file")],
    checkpoint: Annotated[Path | None, typer.Option(help="the model (default: the demo model)")] = None,
    engine: Annotated[Path | None, typer.Option(help="of export_llm.py, with slots for all (default: made)")] = None,
    serve: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, a setting of the server; repeatable")] = None,
    num_frames: Annotated[list[int], typer.Option(help="of the long videos; 0: none; repeatable")] = [0, 512, 1024],  # noqa: B006
    videos: Annotated[int, typer.Option(help="long ones, one after another")] = 4,
    seconds: Annotated[float, typer.Option(help="without a long video")] = 5.0,
    streams: Annotated[int, typer.Option(help="of text")] = 8,
    new_tokens: Annotated[int, typer.Option(help="of a text; of an answer about a video a quarter")] = 256,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "",
) -> None:
    """Measure; print the table, and write it where a name is given."""
    machine, rows = surroundings("torch", "transformers", "numpy", "vllm"), []
    settings = server_settings(serve or [], checkpoint=checkpoint, engine=engine, frame_cache_mb=0, embedding_cache_mb=0)
    with tempfile.TemporaryDirectory() as folder:
        clips = itertools.cycle(make_clips(video, Path(folder), CLIPS, max(num_frames)))
        settings = settings.model_copy(update={"allowed_local_media_path": (Path(folder),)})

        def about(frames: int) -> Question:
            content = [{"type": "text", "text": QUESTIONS[0]}, media_part(next(clips).as_uri(), {"num_frames": frames})]
            return Question([{"role": "user", "content": content}], _length(new_tokens // 4))

        with served(settings) as running:
            server, text = Server(running.url), Question([{"role": "user", "content": TEXT}], _length(new_tokens))
            for frames in num_frames[:1] + num_frames:  # the first is for warming up
                rows.append(asyncio.run(_beside(server, text, about, frames, videos, seconds, streams)))
                typer.echo(table(rows)[-1])
    rows = rows[1:]
    notes = f"{streams} text streams, {videos} long videos in a row, {new_tokens} tokens of a text; caches off."
    typer.echo("\n".join(table(rows)))
    if name:
        write(name, machine, rows, notes)


def _length(tokens: int) -> dict[str, Any]:
    return {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "temperature": 0}


async def _beside(
    server: Server, text: Question, about: Callable[[int], Question], frames: int, videos: int, seconds: float, streams: int
) -> dict[str, Any]:
    """The row of one length."""
    over = asyncio.Event()

    async def again(question: Callable[[], Question]) -> list[Sample]:
        samples = []
        while not over.is_set():
            samples.append(_good(await ask(server, question(), client)))
        return samples

    limits = httpx2.Limits(max_connections=streams + 2)
    async with httpx2.AsyncClient(**server.options, limits=limits) as client:
        texts = [asyncio.create_task(again(lambda: text)) for _ in range(streams)]
        short = asyncio.create_task(again(lambda: about(SHORT)))
        await asyncio.sleep(min(1.0, seconds))  # all are under way
        began, longs = time.perf_counter(), []
        if frames:
            for _ in range(videos):
                longs.append(_good(await ask(server, about(frames), client)))
        else:
            await asyncio.sleep(seconds)
        ended = time.perf_counter()
        over.set()
        written = [sample for samples in await asyncio.gather(*texts) for sample in samples]
        shorts = await short
    pairs = [pair for sample in written for pair in itertools.pairwise(sample.arrivals)]
    gaps = [1e3 * (later - earlier) for earlier, later in pairs if began < later and earlier < ended]
    firsts = [sample.first_token_s for sample in shorts if began < sample.ended]
    return {
        "frames": frames,
        "longest gap ms": max(gaps),
        "p99 gap ms": percentile(gaps, 0.99),
        "median gap ms": median(gaps),
        "short, slowest s": max(firsts),
        "short, median s": median(firsts),
        "long, median s": median(sample.first_token_s for sample in longs) if longs else "-",
    }


def _good(sample: Sample) -> Sample:
    if sample.error:
        raise SystemExit(f"the server answers: {sample.error}")
    return sample


if __name__ == "__main__":
    typer.run(main)
