"""The embedded engine alone: prompts of a video's length through `Engine`, beside Hugging Face's ``generate``.

``python benchmarks/engine.py --size full --baseline``: random weights are made in memory; every prompt has 80 frames as a prompt
table (1,280 rows) and 614 tokens of text, as a real one; answers have a fixed length. `first token`: from the submission of all
streams to each one's first token, the median and the last. `tokens/s`: of all streams together, from the moment that each has its
first. `second turn`: the same prompt, its answer and a new question of 32 tokens.
"""

from __future__ import annotations

import sys
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
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.report import surroundings, table, write
from build_scripts._checkpoint_layout import DIMENSIONS, Size
from internvideo_server.engine import Engine, Output, parse_request
from internvideo_server.limits import EngineLimits

ROWS, TEXT, QUESTION = 1280, 614, 32  # of 80 frames; 1,894 tokens in all
NO_END = -1
PATIENCE_S = 600.0


class Stream:
    """A sink that notes when its tokens come."""

    def __init__(self, ids: np.ndarray) -> None:
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
    size: Annotated[Size, typer.Option(help="of the random weights")] = Size.TINY,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    streams: Annotated[list[int], typer.Option(help="at once; repeatable")] = [1, 4, 16],  # noqa: B006 (typer's form)
    new_tokens: Annotated[int, typer.Option(help="of each answer")] = 128,
    baseline: Annotated[bool, typer.Option("--baseline", help="run generate too, on the same weights")] = False,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "",
) -> None:
    """Measure; print the table, and write it where a name is given, after each row."""
    machine = surroundings("torch", "transformers", "numpy")
    machine["gpu"] = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    model = random_model(size, torch.device(device))
    options = f"--size {size} --device {device} --new-tokens {new_tokens}" + " --baseline" * baseline
    options += "".join(f" --streams {count}" for count in streams)
    notes = f"{machine['gpu'] or 'no GPU'}, {model.dtype}; {ROWS + TEXT} tokens of prompt, {new_tokens} of answer."
    old = (by_generate(model, count, new_tokens) for count in (streams if baseline else []))
    rows: list[dict[str, Any]] = []
    for row in chain(old, by_engine(model, streams, new_tokens)):
        rows.append(row)
        typer.echo("\n".join(table(rows)[0 if len(rows) == 1 else -1 :]))
        if name:
            write(name, machine, rows, f"python benchmarks/engine.py {options}", notes)


def random_model(size: Size, device: torch.device) -> LlamaForCausalLM:
    """The language model as Llama, made where it is to run; bfloat16 on a GPU."""
    dimensions = DIMENSIONS[size]
    config = LlamaConfig(
        vocab_size=dimensions.vocab_size,
        hidden_size=dimensions.llm_hidden,
        num_hidden_layers=dimensions.llm_layers,
        num_attention_heads=dimensions.llm_heads,
        num_key_value_heads=dimensions.llm_kv_heads,
        intermediate_size=dimensions.llm_mlp,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM._from_config(config, dtype=config.dtype)
    return model.eval()


def by_engine(model: LlamaForCausalLM, streams: Sequence[int], new_tokens: int) -> Iterator[dict[str, Any]]:
    """The rows of the engine, first and second turns."""
    most, device = max(streams), model.device
    length = ROWS + TEXT + 2 * new_tokens + QUESTION
    length = max(4096, -(-length // 1024) * 1024)
    config = model.config
    limits = EngineLimits(
        dtype=str(model.dtype).removeprefix("torch."),
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        max_batch_size=most,
        max_input_len=length - 1,
        max_seq_len=length,
        max_num_tokens=length,
        max_prompt_embedding_table_size=most * ROWS,
    )
    began = time.perf_counter()
    engine = Engine(model, limits, max_queue_size=0, reuse=True, cancellation_check_period=0.1)
    started = time.perf_counter() - began
    try:
        run(engine, device, [prompt(engine, 0)], [0], 4)  # the first pass of all loads kernels
        for count in streams:
            seeds = range(count * 100, count * 101)
            first = run(engine, device, [prompt(engine, seed) for seed in seeds], seeds, new_tokens)
            yield {"method": "engine", "turn": "first", **figures(first), "start s": started}
            longer = [
                np.concatenate([stream.prompt, stream.ids, text(seed, QUESTION)])
                for stream, seed in zip(first, seeds, strict=True)
            ]
            second = run(engine, device, longer, seeds, new_tokens)
            yield {"method": "engine", "turn": "second", **figures(second), "start s": started}
    finally:
        engine.close()


def prompt(engine: Engine, seed: int) -> np.ndarray:
    """Ids [N]: text around the rows of a prompt table."""
    words = text(seed, TEXT)
    return np.concatenate([words[:40], np.arange(ROWS) + engine.limits.vocab_size, words[40:]])


def text(seed: int, count: int) -> np.ndarray:
    """Ids that every vocabulary has."""
    return np.random.default_rng(seed).integers(3, 256, count)


def run(
    engine: Engine, device: torch.device, prompts: Sequence[np.ndarray], seeds: Sequence[int], new_tokens: int
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
def by_generate(model: LlamaForCausalLM, count: int, new_tokens: int) -> dict[str, Any]:
    """The row of ``generate``: all prompts as one batch, which is more than a server can hope for."""
    ids = torch.from_numpy(np.stack([text(seed, ROWS + TEXT) for seed in range(count)])).to(model.device)
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}
    model.generate(ids, max_new_tokens=2, **options)  # loads kernels
    times = []
    for tokens in (1, new_tokens):
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **options).cpu()
        times.append(time.perf_counter() - began)
    steps = times[1] - times[0]
    return {
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
