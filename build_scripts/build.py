"""From the Hugging Face checkpoint to a TensorRT-LLM engine and a model repository that serves it.

Run it inside NVIDIA's container (docs/production.md). Made below ``--out``::

    export/             the language model as LlamaForCausalLM, tokenizer.json; runs on the embedded engine as it is
    trtllm_checkpoint/  converted, quantised and cut for the ranks
    engine/             rank*.engine, config.json, tokenizer.json, xgrammar_tokenizer_info.json
    model_repository/   for a plain tritonserver; `internvideo serve` renders its own

Each step is skipped when its output is current. ``--dry-run`` prints the commands; run by hand
into an empty ``--out`` they make the same.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from build_scripts._engine_plan import (
    EngineDtype,
    Plan,
    PlanError,
    Quantization,
    Sizes,
    convert_flags,
    engine_bytes,
    example_convert_command,
    trtllm_build_command,
)
from build_scripts._steps import Step, StepError, beside
from build_scripts.check_checkpoint import check_checkpoint
from internvideo_server.checkpoint import Checkpoint, CheckpointError
from internvideo_server.context import ANSWER_TOKENS, CPU_FRAMES, TEXT_TOKENS
from internvideo_server.engine_directory import GRAMMAR_FILE
from internvideo_server.settings import ServeSettings

SCRIPTS = Path(__file__).resolve().parent


def plan_steps(
    checkpoint: Path,
    out: Path,
    plan: Plan,
    *,
    trtllm_python: str = sys.executable,
    trtllm_examples: Path | None = None,
    scripts: Path = SCRIPTS,
) -> list[Step]:
    """Every step, with absolute commands.

    Args:
        checkpoint: The model as Hugging Face has it.
        out: Where everything goes.
        plan: What to make.
        trtllm_python: The Python that has TensorRT-LLM.
        trtllm_examples: Convert with the example scripts there instead of the installed package.
        scripts: Where this project's scripts are.
    """
    sizes = plan.sizes
    export, converted, engine, repository = (out / name for name in ("export", "trtllm_checkpoint", "engine", "model_repository"))

    def script(name: str, *arguments: str | Path) -> list[str]:
        return [sys.executable, str(scripts / f"{name}.py"), *map(str, arguments)]

    exporting = script("export_llm", checkpoint, "--out", export, "--dtype", plan.dtype)
    exporting += ["--max-batch-size", str(sizes.max_batch_size), "--max-frames", str(sizes.max_frames)]
    exporting += ["--max-seq-len", str(sizes.max_seq_len)]

    source = export / "source.json"
    model, calibrating = export / "llama", []
    if plan.quantization.needs_calibration:
        model = export / "calibration"
        tokenizer = export / "tokenizer.json"
        calibrating = [script("calibration_model", export / "llama", "--tokenizer", tokenizer, "--out", model)]
    if trtllm_examples is None:
        converting = [trtllm_python, str(scripts / "convert.py"), str(model), "--out", str(beside(converted))]
        converting += convert_flags(plan)
    else:
        converting = example_convert_command(trtllm_python, trtllm_examples, model, beside(converted), plan)

    parallel = ["--tp", str(plan.tp), "--pp", str(plan.pp)]
    return [
        Step("checking the checkpoint", [script("check_checkpoint", checkpoint, *parallel)]),
        Step("exporting the language model and the tokenizer", [exporting]),
        Step(
            f"converting to a TensorRT-LLM checkpoint ({plan.quantization})",
            [*calibrating, converting],
            output=converted,
            inputs=[source],
        ),
        Step(
            "building the engine",
            [
                trtllm_build_command(converted, beside(engine), plan),
                ["cp", str(export / "tokenizer.json"), str(beside(engine) / "tokenizer.json")],
                script(
                    *("export_grammar", checkpoint, "--tokenizer", export / "tokenizer.json"),
                    *("--out", beside(engine) / GRAMMAR_FILE),
                ),
            ],
            output=engine,
            inputs=[source, export / "tokenizer.json", converted / "step.json"],
        ),
        Step(
            "rendering the model repository",
            [
                script(
                    *("render_repository", "--checkpoint", checkpoint, "--engine", engine, "--out", repository),
                    *("--device", "cuda", "--max-frames", str(sizes.max_frames)),
                    *("--num-frames", str(min(ServeSettings().num_frames, sizes.max_frames))),
                )
            ],
        ),
    ]


def build(steps: list[Step], out: Path, checkpoint: Path, plan: Plan, console: Console, *, force: bool = False) -> None:
    """Run the steps. Two builds into one directory wait for each other.

    Raises:
        CheckpointError: The checkpoint is broken or cannot be split so.
        StepError: A program failed or is missing, or the disk is too small.
    """

    def report(number: int, line: str) -> None:
        title = "" if line.startswith(" ") else f"[{number}/{len(steps)}] "
        console.print(f"{title}{line}", markup=False, highlight=False, soft_wrap=True)

    check_checkpoint(checkpoint, tp=plan.tp, pp=plan.pp)
    if shutil.which("trtllm-build") is None:
        raise StepError("trtllm-build is not on PATH: run this inside NVIDIA's container (docs/production.md)")
    out.mkdir(parents=True, exist_ok=True)
    _check_disk(out, checkpoint, plan)
    context = {"tensorrt_llm": _version("tensorrt_llm"), "gpu": _gpu()}
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for number, step in enumerate(steps, start=1):
            step.run(partial(report, number), context, force)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _gpu() -> str:
    """An engine runs on the kind of GPU that it was built on."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return ", ".join(sorted(set(output.split("\n"))))


def _check_disk(out: Path, checkpoint: Path, plan: Plan) -> None:
    """Export, conversion and engine each hold the language model once."""
    llm_config = Checkpoint.open(checkpoint).llm_config
    needed = engine_bytes(llm_config, Quantization.NONE) + 2 * engine_bytes(llm_config, plan.quantization)
    made = sum(file.stat().st_size for file in out.rglob("*") if file.is_file() and not file.is_symlink())
    free = shutil.disk_usage(out).free
    if free + made < needed:
        raise StepError(f"{out} has {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB are needed (export, conversion, engine)")


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Directory of InternVideo2_5_Chat_8B's files.")],
    out: Annotated[Path, typer.Option(help="Directory for everything that is made.")],
    quantization: Annotated[Quantization, typer.Option(help="Of the language model's weights.")] = Quantization.INT8,
    dtype: Annotated[EngineDtype, typer.Option(help="Of everything else.")] = EngineDtype.BFLOAT16,
    tp: Annotated[int, typer.Option(help="GPUs that share each layer.")] = 1,
    pp: Annotated[int, typer.Option(help="Groups of GPUs that share the layers.")] = 1,
    max_batch_size: Annotated[int, typer.Option(help="Requests in flight at once.")] = 2,
    max_frames: Annotated[int, typer.Option(help="Frames of one request, all its videos together.")] = CPU_FRAMES,
    max_text_tokens: Annotated[int, typer.Option(help="Tokens of a prompt beside its frames.")] = TEXT_TOKENS,
    max_output_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = ANSWER_TOKENS,
    calib_dataset: Annotated[
        str, typer.Option(help="Text for fp8 and int4-awq: a name on the hub, or a directory (split train, column text).")
    ] = "cnn_dailymail",
    calib_size: Annotated[int, typer.Option(min=1, help="Samples of it.")] = 512,
    trtllm_python: Annotated[
        str, typer.Option(envvar="TRTLLM_PYTHON", help="The Python that has TensorRT-LLM.")
    ] = sys.executable,
    trtllm_examples: Annotated[
        Path | None, typer.Option(help="Convert with TensorRT-LLM's example scripts in this directory, e.g. /app/examples.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Convert and build even if current.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, one a line, and change nothing.")] = False,
) -> None:
    """Make a TensorRT-LLM engine and a model repository from the checkpoint, inside NVIDIA's container."""
    console = Console(stderr=True)
    try:
        sizes = Sizes(max_batch_size, max_frames, max_text_tokens, max_output_tokens)
        plan = Plan(sizes, quantization, dtype, tp, pp, calib_dataset, calib_size)
        checkpoint, out = Path(os.path.abspath(checkpoint)), Path(os.path.abspath(out))
        steps = plan_steps(checkpoint, out, plan, trtllm_python=trtllm_python, trtllm_examples=trtllm_examples)
        if dry_run:  # what is printed should be able to run
            check_checkpoint(checkpoint, tp=tp, pp=pp)
        for line in sizes.explain():
            console.print(f"# {line}", markup=False, highlight=False, soft_wrap=True)
        if dry_run:
            for step in steps:
                for line in step.lines():
                    typer.echo(line)
            return
        build(steps, out, checkpoint, plan, console, force=force)
    except (PlanError, CheckpointError, StepError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    console.print(f"done: internvideo serve --checkpoint {checkpoint} --engine {out / 'engine'}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
