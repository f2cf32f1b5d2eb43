"""How much GPU memory a deployment needs, as a table: what docs/production.md shows, and for other numbers.

The arithmetic is the launcher's and the doctor's (``internvideo_server.memory``).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Annotated

import typer

from build_scripts._engine_plan import Plan, Quantization, Sizes, engine_bytes
from build_scripts.checkpoint_sizes import DIMENSIONS, Size, model_config
from internvideo_server.context import RESERVE, Context, most_frames
from internvideo_server.limits import MAX_POSITIONS
from internvideo_server.memory import GIB, Deployment
from internvideo_server.settings import ServeSettings

_CONFIG = model_config(DIMENSIONS[Size.FULL], "bfloat16")


def gpu_bytes(plan: Plan) -> dict[str, int]:
    """The parts of what the first rank's GPU holds for the real model, the vision tower included.

    Args:
        plan: Sizes, quantisation and parallelism; bfloat16.
    """
    sizes = plan.sizes
    deployment = Deployment(
        _CONFIG,
        plan.dtype.value,
        sizes.max_batch_size,
        ServeSettings().cuda_region_count,
        weights=engine_bytes(_CONFIG["llm_config"], plan.quantization) // plan.world_size,
        kv_element=1 if plan.quantization is Quantization.FP8 else None,  # that preset's cache is FP8, too
        tp=plan.tp,
        pp=plan.pp,
    )
    need = deployment.need(Context(sizes.max_frames, sizes.max_seq_len))
    return {
        "weights": need.weights,
        "KV cache": need.kv_cache,
        "prompt tables": need.prompt_tables,
        "vision tower": need.vision,
        "allowance": need.allowance,
    }


def table(frames: list[int], batches: list[int], tp: int = 1) -> str:
    """Rows of frames and batch, columns of quantisation, in GiB; markdown."""
    names = {Quantization.NONE: "bfloat16", Quantization.INT8: "int8", Quantization.FP8: "fp8", Quantization.INT4_AWQ: "int4-awq"}
    lines = [f"| frames | batch | max_seq_len | {' | '.join(names.values())} |", "|" + "---:|" * (3 + len(names))]
    for count, batch in product(frames, batches):
        sizes = Sizes(max_batch_size=batch, max_frames=count)
        totals = [sum(gpu_bytes(Plan(sizes, quantization, tp=tp)).values()) / GIB for quantization in names]
        cells = [str(count), str(batch), str(sizes.max_seq_len), *(f"{total:.1f}" for total in totals)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def small_cards(caps: list[int], batches: list[int]) -> str:
    """The most frames of one request that `serve --gpu-memory CAP` takes: rows of cap and batch; markdown."""
    embedded = Deployment(_CONFIG, "bfloat16", 1, ServeSettings().cuda_region_count)
    ways = {
        "embedded, bfloat16": embedded,
        "vLLM, bfloat16": embedded.on_vllm("none", "auto", 1),
        "vLLM, int8": embedded.on_vllm("int8", "auto", 1),
        "vLLM, FP8, FP8 KV cache": embedded.on_vllm("fp8", "fp8", 1),
    }
    lines = [f"| GiB | batch | {' | '.join(ways)} |", "|" + "---:|" * (2 + len(ways))]
    for cap, batch in product(caps, batches):
        frames = [
            replace(way, max_batch_size=batch).most_frames(cap * GIB, most_frames(MAX_POSITIONS - RESERVE))
            for way in ways.values()
        ]
        lines.append(f"| {cap} | {batch} | {' | '.join(str(count) if count else '-' for count in frames)} |")
    return "\n".join(lines)


def main(
    frames: Annotated[list[int] | None, typer.Option(help="Frames of one request (repeatable).")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Requests in flight at once (repeatable).")] = None,
    tp: Annotated[int, typer.Option(min=1, help="GPUs that share each layer: the figures are for the first.")] = 1,
    cap: Annotated[list[int] | None, typer.Option(help="GiB that --gpu-memory gives (repeatable).")] = None,
) -> None:
    """Print the GPU memory that a deployment needs, in GiB, or with --cap the frames that fit into so many."""
    if cap:
        typer.echo(small_cards(cap, batch or [1, 2, 8]))
    else:
        typer.echo(table(frames or [64, 128, 256, 512], batch or [1, 2, 8], tp))


if __name__ == "__main__":
    typer.run(main)
