"""The whole system over HTTP: videos to answers, beside the old system's method.

``python benchmarks/end_to_end.py VIDEO --checkpoint DIR --engine DIR --baseline`` starts the server without its caches, then
with them (or uses ``--url`` once), and asks about copies of the video, each with other bytes and other frames, so that no cache
could help a first turn. For each of ``--streams``, so many are under way all the time, ``--repeats`` times as many in all:
`first token`: from the request to the first token, the median; `second turn`: the same for a second question about the same
video; `tokens/s`: of all streams, from the first token of all to the last; `videos/s`: answers by the whole time, in which the
first and the last of them have the machine to themselves. Answers are kept from ending before ``--new-tokens``
(``min_tokens``); `fewest tokens` shows it. `waiting`, `decode` and `vision` are what the server says of its stages, medians.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx2
import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.old_method import OldMethod
from benchmarks.report import surroundings, table, write
from internvideo_server.launch import ServeOptions, start

QUESTIONS = "详细描述一下这个视频的内容。", "What happens at the end?"
TEXT_TOKENS = 614  # of the prompt for 80 frames and the first question
PATIENCE_S = 300.0
SETTLED_S = 4.0  # the server's caches know no file that has just been written
# Starts of the copies: of a clip of 30 s at 30 frames a second, no two share more than half of 80 frames.
SHIFTS, SHIFT_S = 16, 0.05


@dataclass
class Reply:
    """One streamed answer; times in seconds of one clock."""

    asked: float
    first: float
    last: float
    usage: dict[str, Any]
    text: str


def main(
    video: Annotated[Path, typer.Argument(help="a video file")],
    checkpoint: Annotated[Path | None, typer.Option(help="the model; none: the demo model")] = None,
    engine: Annotated[
        Path | None, typer.Option(help="of export_llm.py with as many slots as streams; none: the server's own")
    ] = None,
    url: Annotated[str, typer.Option(help="a running server that may read the folder of --videos; none: it is started")] = "",
    videos: Annotated[Path | None, typer.Option(help="folder for the copies of the video; none: a temporary one")] = None,
    streams: Annotated[list[int], typer.Option(help="at once; repeatable")] = [1, 4, 16],  # noqa: B006 (typer's form)
    num_frames: Annotated[int, typer.Option()] = 80,
    new_tokens: Annotated[int, typer.Option()] = 64,
    repeats: Annotated[int, typer.Option(help="videos of each stream, one after the other")] = 4,
    decode_workers: Annotated[int, typer.Option(help="of the server that is started")] = 8,
    vit_quantization: Annotated[str, typer.Option(help="of the server that is started")] = "none",
    baseline: Annotated[bool, typer.Option("--baseline", help="run the old method too; needs --checkpoint and --engine")] = False,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "",
) -> None:
    """Measure; print the table, and write it where a name is given, whenever it has a new row."""
    if baseline and not (checkpoint and engine):
        raise typer.BadParameter("--baseline needs --checkpoint and --engine")
    machine, rows = surroundings("torch", "transformers", "numpy"), []
    flags = f"--num-frames {num_frames} --new-tokens {new_tokens} --repeats {repeats} --decode-workers {decode_workers}"
    flags += "".join(f" --streams {number}" for number in streams) + " --baseline" * baseline
    flags += f" --vit-quantization {vit_quantization}" if vit_quantization != "none" else ""
    command = f"python benchmarks/end_to_end.py {video.name} --checkpoint ... --engine ... {flags}"

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        typer.echo("\n".join(table(rows)[0 if len(rows) == 1 else -1 :]))
        if name:
            notes = f"{num_frames} frames, {new_tokens} tokens of answer; {repeats} videos a stream."
            write(name, machine, rows, command, notes)

    with tempfile.TemporaryDirectory() as temporary:
        folder = videos or Path(temporary)
        copies = distinct_copies(video, folder, 2 + repeats * sum(streams))
        options = ServeOptions(
            checkpoint=checkpoint,
            engine=engine,
            num_frames=num_frames,
            allowed_local_media_path=(folder.resolve(),),
            decode_workers=decode_workers,
            vit_quantization=vit_quantization,
            **dict.fromkeys(("port", "triton_http_port", "triton_grpc_port", "triton_metrics_port"), 0),
        )
        without = replace(options, frame_cache_mb=0, embedding_cache_mb=0)
        for method, settings in {"server": options}.items() if url else (("no caches", without), ("server", options)):
            with nullcontext(url) if url else started(settings, method, machine) as address:
                turns = 1 if method == "no caches" else 2
                for row in measure(address, copies, streams, turns, num_frames, new_tokens, repeats):
                    add({"method": method, **row})
    if baseline and checkpoint and engine:
        add(by_old_method(OldMethod(checkpoint, engine, device()), video, num_frames, new_tokens, repeats, machine))


@contextmanager
def started(options: ServeOptions, method: str, machine: dict[str, Any]) -> Iterator[str]:
    """A server's address."""
    began = time.perf_counter()
    with start(options, report=lambda line: typer.echo(f"{time.perf_counter() - began:6.1f} s  {line}", err=True)) as server:
        machine[f"start s, {method}"] = time.perf_counter() - began
        yield server.openai_url


def measure(
    address: str, videos: list[tuple[Path, int]], streams: list[int], turns: int, num_frames: int, new_tokens: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """The row of each number of streams."""
    copies = iter(videos)
    with httpx2.Client(base_url=address.removesuffix("/v1"), timeout=PATIENCE_S, trust_env=False) as http:
        for _ in range(2):
            run(http, [next(copies)], 1, turns, num_frames, new_tokens)  # the first of all loads what is loaded once
        for number in streams:
            yield {"streams": number, **run(http, list(islice(copies, repeats * number)), number, turns, num_frames, new_tokens)}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def distinct_copies(video: Path, folder: Path, number: int) -> list[tuple[Path, int]]:
    """Numbered copies of the video, each with a box of its own at its end that decoders skip (mp4, mov)."""
    content, copies = video.read_bytes(), [(folder / f"{i}{video.suffix}", i) for i in range(number)]
    for path, i in copies:
        path.write_bytes(content + (16).to_bytes(4, "big") + b"free" + i.to_bytes(8, "big"))
    return copies


def run(
    http: httpx2.Client, videos: Sequence[tuple[Path, int]], streams: int, turns: int, num_frames: int, new_tokens: int
) -> dict[str, Any]:
    """One or two turns about all videos, so many of them under way at a time; the figures of the table."""
    replies: list[list[Reply]] = []
    messages: list[list[dict[str, Any]]] = []
    for path, number in videos:
        source = {"url": path.resolve().as_uri(), "num_frames": num_frames, "start": number % SHIFTS * SHIFT_S}
        content = [{"type": "text", "text": QUESTIONS[0]}, {"type": "video_url", "video_url": source}]
        messages.append([{"role": "user", "content": content}])
    with ThreadPoolExecutor(streams) as pool:
        for _ in range(turns):
            replies.append(list(pool.map(lambda chat: ask(http, chat, new_tokens), messages)))
            for chat, reply in zip(messages, replies[-1], strict=True):
                chat += [{"role": "assistant", "content": reply.text or "-"}, {"role": "user", "content": QUESTIONS[-1]}]
    first = replies[0]
    lengths = [reply.usage["completion_tokens"] for reply in first]
    stages = [reply.usage["internvideo"] for reply in first]
    return {
        "first token s": median(reply.first - reply.asked for reply in first),
        "last first token s": max(reply.first - reply.asked for reply in first),
        "second turn s": median(reply.first - reply.asked for reply in replies[1]) if turns > 1 else "-",
        "tokens/s": sum(tokens - 1 for tokens in lengths) / (max(r.last for r in first) - min(r.first for r in first)),
        "videos/s": len(first) / (max(reply.last for reply in first) - min(reply.asked for reply in first)),
        "fewest tokens": min(lengths),
        "waiting ms": median(stage["queue_ms"] + stage["vision_queue_ms"] for stage in stages),
        "decode ms": median(stage["decode_ms"] for stage in stages),
        "vision ms": median(stage["vision_ms"] for stage in stages),
    }


def ask(http: httpx2.Client, messages: list[dict[str, Any]], new_tokens: int) -> Reply:
    """Stream one answer. (The adapter's first event comes with the first token.)"""
    body = {
        "model": "InternVideo2_5",
        "messages": messages,
        "max_tokens": new_tokens,
        "min_tokens": new_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked = time.perf_counter()
    first = last = 0.0
    usage: dict[str, Any] = {}
    text = ""
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{response.status_code}: {response.read().decode()}")
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if not line.startswith("data: ") or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise SystemExit(f"the stream ended with {event['error']}")
            if event["choices"]:
                last = time.perf_counter()
                first = first or last
                text += event["choices"][0]["delta"].get("content") or ""
            usage = event.get("usage") or usage
    return Reply(asked, first, last, usage, text)


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
    }


if __name__ == "__main__":
    typer.run(main)
