"""All benchmarks one after another, on a host with a GPU, and a table of what they found beside the targets.

``python benchmarks/all.py VIDEO`` needs nothing but a video: the checkpoint of the real size has random weights, made here and
exported, 32 GB in ``--work`` (a memory disk saves minutes where the disk is slow). Each step is a process with a time limit; one
that fails is named at the end, the others run. ``--size tiny`` tries it all on a CPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.report import RESULTS, ROOT, surroundings, table
from build_scripts._checkpoint_layout import Size

ENDING_S = 30.0  # of a step that is asked to stop, its servers included


class Benchmark(StrEnum):
    """In the order in which they run."""

    VISION = "vision"
    HANDOFF = "handoff"
    ENGINE = "engine"
    END_TO_END = "end_to_end"
    DECODE = "decode"


@dataclass(frozen=True)
class Step:
    """A program; seconds at full size on an H200 with 16 cores, expected and allowed."""

    name: str
    arguments: list[str]
    expected_s: int
    limit_s: int


@dataclass(frozen=True)
class Target:
    """One line of the summary: a column of that row of a result which has these values, and what the old method's has instead."""

    what: str
    target: str
    result: str
    column: str
    row: dict[str, Any]
    old: dict[str, Any]


OLD: dict[str, Any] = {"method": "old method"}
FRAMES_WAY, ROWS_WAY = ({"frames": 80, "way": way} for way in ("frames: descriptor, read, 4 threads", "rows: GPU region"))
ENGINE_FIRST = {"method": "engine", "turn": "first"}
CORES = len(os.sched_getaffinity(0))
DECODE = "decode" if CORES == 2 else f"decode_{CORES}_cores"
TARGETS = [
    Target("vision tower, 80 frames, ms", "100", "vision", "ms", {"frames": 80, "method": "server"}, OLD),
    Target("the same in FP8, ms", "70", "vision", "ms", {"frames": 80, "method": "server, FP8"}, OLD),
    Target("80 frames to the tower's GPU, ms", "10", "handoff", "on device ms", FRAMES_WAY, {"way": "frames: old method"}),
    Target("their rows to the engine's, ms", "-", "handoff", "on device ms", ROWS_WAY, {"way": "rows: old method"}),
    Target("tokens/s, 1 stream", "120", "engine", "tokens/s", {**ENGINE_FIRST, "streams": 1}, {"method": "generate"}),
    Target("tokens/s, 16 streams", "1200", "engine", "tokens/s", {**ENGINE_FIRST, "streams": 16}, {"method": "generate"}),
    Target("first token, s", "0.5", "end_to_end", "first token s", {"method": "no caches", "streams": 1}, OLD),
    Target("first token of a second turn, s", "0.15", "end_to_end", "second turn s", {"method": "server", "streams": 1}, OLD),
    Target("videos/s, 16 at once", "5", "end_to_end", "videos/s", {"method": "no caches", "streams": 16}, {**OLD, "streams": 1}),
    Target("decode and resize 80 frames, s", "-", DECODE, "s", {"method": "server"}, OLD),
    Target("the same, times as fast", "2.5 (2 cores), 6 (16)", DECODE, "times as fast", {"method": "server"}, OLD),
]


def main(
    video: Annotated[Path, typer.Argument(exists=True, help="mp4 or mov")],
    size: Annotated[Size, typer.Option(help="of the model")] = Size.FULL,
    only: Annotated[str, typer.Option(help="some of them: vision,handoff,engine,end_to_end,decode")] = ",".join(Benchmark),
    out: Annotated[Path, typer.Option(help="where the results go")] = RESULTS,
    work: Annotated[Path | None, typer.Option(help="for checkpoint and export, which go again; none: the system's")] = None,
    tokenizer_model: Annotated[Path | None, typer.Option(help="InternLM2's, for prompts of the real length")] = None,
) -> None:
    """Run all benchmarks and print what they found beside the targets."""
    try:
        wanted = [Benchmark(name) for name in only.split(",")]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from None
    gpu = surroundings()["gpu"]
    if size == Size.FULL and not gpu:
        raise SystemExit("no GPU found (nvidia-smi): the real size needs one; --size tiny does not")
    out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    if work:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="internvideo-benchmarks-", dir=work) as temporary:
        steps = list(plan(wanted, size, bool(gpu), video.resolve(), Path(temporary), out.resolve(), tokenizer_model))
        failed = run_all(steps)
    lines = summary(out, began)
    (out / "summary.md").write_text("\n".join(lines) + "\n")
    typer.echo("\n".join(["", *lines]))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def plan(
    wanted: list[Benchmark], size: Size, gpu: bool, video: Path, work: Path, out: Path, tokenizer_model: Path | None
) -> Iterator[Step]:
    """The steps in their order."""
    full = size == Size.FULL
    checkpoint, engine = work / "checkpoint", work / "engine"
    fewer = [] if full else ["--repeats", "1"]
    streams = [] if full else ["--streams", "1", "--streams", "2", "--new-tokens", "16"]

    def step(name: str, options: list[str], expected_s: int, limit_s: int, result: str = "") -> Step:
        return Step(name, [f"benchmarks/{name}.py", *options, "--name", str(out / (result or name))], expected_s, limit_s)

    if Benchmark.END_TO_END in wanted or (Benchmark.VISION in wanted and not full):
        make = ["build_scripts/make_checkpoint.py", "--size", size, "--out", str(checkpoint)]
        make += ["--shards", "16"] if full else []
        make += ["--tokenizer-model", str(tokenizer_model)] if full and tokenizer_model else []
        yield Step("checkpoint", make, 20, 300)
    for each in Benchmark:
        if each not in wanted:
            continue
        if each == Benchmark.VISION:
            options = ["--baseline", *["--fp8"] * gpu, "--repeats", "3", "--seconds", "0.4"]
            if not full:
                options += ["--checkpoint", str(checkpoint), "--frames", "8"]
                options += [] if gpu else ["--device", "cpu", "--dtype", "float32"]
            yield step("vision", options, 80, 180)
        elif each == Benchmark.HANDOFF:
            yield step(
                "handoff",
                ["--baseline", "--others", "--repeats", "7", *([] if full else ["--frames", "8", "--frames", "80"])],
                60,
                150,
            )
        elif each == Benchmark.ENGINE:
            yield step("engine", ["--size", size, "--baseline", *streams], 70, 180)
        elif each == Benchmark.END_TO_END:
            export = ["build_scripts/export_llm.py", str(checkpoint), "--out", str(engine), "--max-batch-size", "16"]
            yield Step("export", export, 20, 300)
            options = [str(video), "--checkpoint", str(checkpoint), "--engine", str(engine), "--baseline", *fewer, *streams]
            options += [] if full else ["--num-frames", "8"]
            yield step("end_to_end", options, 160, 300)
        else:
            yield step("decode", [str(video), "--baseline", *fewer], 20, 120, DECODE)


def run_all(steps: list[Step]) -> list[str]:
    """Run them; what needs a step that failed is left out. Returns the names of those that did not pass."""
    failed: list[str] = []
    for number, step in enumerate(steps, 1):
        needs = {"export": ["checkpoint"], "end_to_end": ["checkpoint", "export"]}.get(step.name, [])
        if missing := [name for name in needs if name in failed]:
            typer.echo(f"\n{step.name}: left out, it needs {missing[0]}")
            failed.append(step.name)
            continue
        rest = sum(each.expected_s for each in steps[number - 1 :])
        typer.echo(f"\n{number}/{len(steps)} {step.name}: about {step.expected_s} s at full size on an H200, {rest} s to the end")
        began = time.monotonic()
        if fault := run(step):
            failed.append(step.name)
        typer.echo(f"{step.name}: {fault or 'done'}, {time.monotonic() - began:.0f} s")
    return failed


def run(step: Step) -> str:
    """What went wrong, or nothing. It and all that it started end within its limit."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    environment["PYTHONUNBUFFERED"] = "1"
    with subprocess.Popen([sys.executable, *step.arguments], cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            code = process.wait(step.limit_s)
            return f"failed (exit code {code})" if code else ""
        except subprocess.TimeoutExpired:
            return f"stopped after {step.limit_s} s"
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # it stops its servers
                try:
                    process.wait(ENDING_S)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def summary(out: Path, since: float) -> list[str]:
    """The table of targets, with the figures of results written after a moment."""
    rows = []
    for target in TARGETS:
        file = out / f"{target.result}.json"
        found = json.loads(file.read_text())["rows"] if file.is_file() and file.stat().st_mtime > since else []
        here, old = (
            next((row.get(target.column, "-") for row in found if wanted.items() <= row.items()), "-")
            for wanted in (target.row, target.row | target.old)
        )
        rows.append({"what": target.what, "target": target.target, "here": here, "old method": old})
    return table(rows)


if __name__ == "__main__":
    typer.run(main)
