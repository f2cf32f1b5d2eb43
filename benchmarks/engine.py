"""An engine alone: prompts of a video's length through `Engine`, beside Hugging Face's ``generate``.

``python benchmarks/engine.py ENGINE --vllm``: ENGINE is of export_llm.py, with slots for as many streams; every prompt has 80
frames as a prompt table (1,280 rows) and 614 tokens of text, as a real one; answers have a fixed length. `first token`: from the
submission of all streams to each one's first token, the median and the last. `tokens/s`: of all streams together, from the moment
that each has its first. `second turn`: the same prompt, its answer and a new question of 32 tokens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.report import surroundings, table, write
from internvideo_server.engine import Engine, Output, VllmOptions, load_engine, parse_request
from internvideo_server.engine.manager import load_language_model
from internvideo_server.limits import EngineLimits

ROWS, TEXT, QUESTION = 1280, 614, 32  # of 80 frames; 1,894 tokens in all
NO_END = -1
PATIENCE_S = 600.0


class Stream:
    """A sink that notes when its tokens come."""

    def __init__(self, ids: np.ndarray[Any, Any]) -> None:
        self.prompt = ids
        self.ids: list[int] = []
        self.times: list[float] = []
        self.began = 0.0
        self.error = ""
        self._done = threading.Event()

    def send(self, output: Output) -> None:
        self.times += [time.perf_counter()] * len(output.output_ids)
        self.ids += output.output_ids.tolist()
        if output.final:
            self._done.set()

    def fail(self, text: str, *, cancelled: bool = False) -> None:
        self.error = text
        self._done.set()

    def is_cancelled(self) -> bool:
        return False

    def wait(self) -> None:
        if not self._done.wait(PATIENCE_S) or self.error:
            raise SystemExit(f"a request failed: {self.error or 'no end'}")


def main(
    engine: Annotated[Path, typer.Argument(exists=True, help="directory of export_llm.py, with slots for all streams")],
    device: Annotated[str, typer.Option()] = "cuda:0" if torch.cuda.is_available() else "cpu",
    vllm: Annotated[bool, typer.Option("--vllm", help="on vLLM instead of transformers")] = False,
    quantization: Annotated[str, typer.Option(help="of vLLM's weights: none or fp8")] = "none",
    streams: Annotated[list[int], typer.Option(help="at once; repeatable")] = [1, 4, 16],  # noqa: B006 (typer's form)
    new_tokens: Annotated[int, typer.Option(help="of each answer")] = 128,
    baseline: Annotated[bool, typer.Option("--baseline", help="run generate too, on the same weights")] = False,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "",
) -> None:
    """Measure; print the table, and write it where a name is given, after each row."""
    machine, on = surroundings("torch", "transformers", "numpy", "vllm"), torch.device(device)
    notes = f"{on}, {EngineLimits.from_engine_dir(engine).dtype}; {ROWS + TEXT} tokens of prompt, {new_tokens} of answer."
    options = VllmOptions(quantization=quantization) if vllm else None
    old = by_generate(engine, on, streams, new_tokens) if baseline else iter(())
    rows: list[dict[str, Any]] = []
    for row in chain(old, by_engine(engine, on, options, streams, new_tokens)):
        rows.append(row)
        typer.echo("\n".join(table(rows)[0 if len(rows) == 1 else -1 :]))
        if name:
            write(name, machine, rows, notes)


def by_engine(
    folder: Path, device: torch.device, vllm: VllmOptions | None, streams: Sequence[int], new_tokens: int
) -> Iterator[dict[str, Any]]:
    """The rows of the engine, first and second turns."""
    began = time.perf_counter()
    engine = load_engine(folder, device, max_queue_size=0, reuse=True, cancellation_check_period=0.1, vllm=vllm)
    started = time.perf_counter() - began
    method = "vLLM" if vllm else "embedded"
    try:
        run(engine, device, [prompt(engine, 0)], [0], 4)  # the first pass of all loads kernels
        for count in streams:
            seeds = range(count * 100, count * 101)
            first = run(engine, device, [prompt(engine, seed) for seed in seeds], seeds, new_tokens)
            yield {"method": method, "turn": "first", **figures(first), "start s": started}
            longer = [
                np.concatenate([stream.prompt, stream.ids, text(seed, QUESTION)])
                for stream, seed in zip(first, seeds, strict=True)
            ]
            second = run(engine, device, longer, seeds, new_tokens)
            yield {"method": method, "turn": "second", **figures(second), "start s": started}
    finally:
        engine.close()


def prompt(engine: Engine, seed: int) -> np.ndarray[Any, Any]:
    """Ids [N]: text around the rows of a prompt table."""
    words = text(seed, TEXT)
    return np.concatenate([words[:40], np.arange(ROWS) + engine.limits.vocab_size, words[40:]])


def text(seed: int, count: int) -> np.ndarray[Any, Any]:
    """Ids that every vocabulary has."""
    return np.random.default_rng(seed).integers(3, 256, count)


def run(
    engine: Engine, device: torch.device, prompts: Sequence[np.ndarray[Any, Any]], seeds: Sequence[int], new_tokens: int
) -> list[Stream]:
    """Submit all prompts at once and wait for them."""
    limits, waiting = engine.limits, []
    for ids, seed in zip(prompts, seeds, strict=True):
        video = ids >= limits.vocab_size
        rows = torch.randn(1, ROWS, limits.hidden_size, generator=torch.Generator(device).manual_seed(seed), device=device)
        tensors = {
            "input_ids": ids[None].astype(np.int32),
            "request_output_len": np.array([[new_tokens]], np.int32),
            "streaming": np.array([[True]]),
            "end_id": np.array([[NO_END]], np.int32),
            "prompt_table_extra_ids": np.where(video, seed + 1, 0).astype(np.uint64)[None],
        }
        table_rows = rows.to(getattr(torch, limits.dtype)) * 0.02
        waiting.append(parse_request(tensors, table_rows, limits, exclude_input=True, reuse=True))
    streams = [Stream(ids) for ids in prompts]
    began = time.perf_counter()
    for number, (request, stream) in enumerate(zip(waiting, streams, strict=True)):
        engine.submit(str(number), request, stream)
    for stream in streams:
        stream.wait()
        stream.began = began
    return streams


def figures(streams: list[Stream]) -> dict[str, Any]:
    """What the table shows of one run."""
    firsts = [stream.times[0] - stream.began for stream in streams]
    began, ended = max(stream.times[0] for stream in streams), max(stream.times[-1] for stream in streams)
    later = sum(moment > began for stream in streams for moment in stream.times)
    return {
        "streams": len(streams),
        "first token s": median(firsts),
        "last first token s": max(firsts),
        "tokens/s": later / (ended - began),
        "ms/step": (ended - began) / max(1, later // len(streams)) * 1e3,
    }


@torch.inference_mode()
def by_generate(folder: Path, device: torch.device, streams: Sequence[int], new_tokens: int) -> Iterator[dict[str, Any]]:
    """The rows of ``generate``: all prompts as one batch, which is more than a server can hope for."""
    model = load_language_model(folder / "llama", EngineLimits.from_engine_dir(folder).dtype, device)
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}
    for count in streams:
        ids = torch.from_numpy(np.stack([text(seed, ROWS + TEXT) for seed in range(count)])).to(device)
        model.generate(ids, max_new_tokens=2, **options)  # loads kernels
        times = []
        for tokens in (1, new_tokens):
            began = time.perf_counter()
            model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **options).cpu()
            times.append(time.perf_counter() - began)
        steps = times[1] - times[0]
        yield {
            "method": "generate",
            "turn": "first",
            "streams": count,
            "first token s": times[0],
            "last first token s": times[0],
            "tokens/s": count * (new_tokens - 1) / steps,
            "ms/step": steps / (new_tokens - 1) * 1e3,
            "start s": "-",
        }


if __name__ == "__main__":
    typer.run(main)
