"""How much GPU memory a deployment needs, as a table: what docs/production.md shows, and for other numbers.

Weights, KV cache and prompt tables follow from the model's shape; the allowances for contexts, activations and buffers are those
of ``internvideo doctor`` (``internvideo_server.doctor``).
"""

from __future__ import annotations

import math
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, cast

import typer

from internvideo_server.checkpoint import Checkpoint
from internvideo_server.doctor._memory import ENGINE_ALLOWANCE, GIB, VISION_ALLOWANCE, kv_bytes_per_token
from internvideo_server.doctor._shapes import expected_shapes
from internvideo_server.launch._engine import prompt_table_bytes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found as a script, too
from build_scripts._checkpoint_layout import DIMENSIONS, Size, model_config
from build_scripts._engine_plan import Plan, Quantization, Sizes, engine_bytes

_CONFIG = model_config(DIMENSIONS[Size.FULL], "bfloat16")
_REAL = cast(Checkpoint, SimpleNamespace(vision_config=_CONFIG["vision_config"], llm_config=_CONFIG["llm_config"]))


def gpu_bytes(plan: Plan) -> dict[str, int]:
    """The parts of what the first rank's GPU holds for the real model, the vision tower included.

    Args:
        plan: Sizes, quantisation and parallelism; bfloat16.
    """
    llm, sizes = _CONFIG["llm_config"], plan.sizes
    limits = sizes.limits(plan.dtype.value, llm["vocab_size"], llm["hidden_size"])
    element = 1 if plan.quantization is Quantization.FP8 else 2  # that preset's cache is FP8, too
    token = kv_bytes_per_token(llm, plan.tp, plan.pp, element)
    vision = sum(math.prod(shape) for name, shape in expected_shapes(_REAL).items() if not name.startswith("language_model."))
    return {
        "weights": engine_bytes(llm, plan.quantization) // plan.world_size,
        "KV cache": sizes.max_batch_size * sizes.max_seq_len * token,
        "prompt tables": prompt_table_bytes(limits),
        "vision tower": 2 * vision + VISION_ALLOWANCE,
        "allowance": ENGINE_ALLOWANCE,
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


def main(
    frames: Annotated[list[int] | None, typer.Option(help="Frames of one request (repeatable).")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Requests in flight at once (repeatable).")] = None,
    tp: Annotated[int, typer.Option(min=1, help="GPUs that share each layer: the figures are for the first.")] = 1,
) -> None:
    """Print the GPU memory that a deployment needs, in GiB."""
    typer.echo(table(frames or [64, 128, 256, 512], batch or [1, 2, 8], tp))


if __name__ == "__main__":
    typer.run(main)
