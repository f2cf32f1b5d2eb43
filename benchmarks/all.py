"""All that is measured on a host with a GPU, part by part: what has a result of this commit, card and driver is left out.

``python benchmarks/all.py VIDEO --work DIR`` needs nothing but a video: the checkpoint of the real size has random weights, made
and exported once, 32 GB in ``--work`` (a memory disk saves minutes where the disk is slow). Each part is a process with a time
limit; one that fails is named at the end, the others run. ``--list`` says what is left, ``--only`` and ``--minutes`` choose.
``--size tiny`` tries every part in its smallest form, on a CPU too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import targets
from benchmarks.parts import Form, Part
from benchmarks.report import RESULTS, ROOT, commit, gpus, read, table
from build_scripts.checkpoint_sizes import Size

ENDING_S = 30.0  # of a part that is asked to stop, its servers included
_EXPORT_S, _CHECKPOINT_S = 300, 600  # limits


def main(
    video: Annotated[Path, typer.Argument(exists=True, help="mp4 or mov")],
    size: Annotated[Size, typer.Option(help="of the model")] = Size.FULL,
    only: Annotated[str, typer.Option(help="names of parts, with commas between")] = "",
    minutes: Annotated[float, typer.Option(help="start no part that is expected to end later")] = 1e9,
    again: Annotated[bool, typer.Option("--again", help="also parts that have a result of this commit and card")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="say what is left, and end")] = False,
    out: Annotated[Path, typer.Option(help="where the results go")] = RESULTS,
    work: Annotated[Path | None, typer.Option(help="keeps checkpoint and engine for the next time (default: temporary)")] = None,
    tokenizer_model: Annotated[Path | None, typer.Option(help="InternLM2's, for prompts of the real length")] = None,
) -> None:
    """Run what is left, and print the targets beside what was measured."""
    card = gpus()
    if size == Size.FULL and not card:
        raise SystemExit("no GPU found (nvidia-smi): the real size needs one; --size tiny does not")
    if size != Size.FULL and out == RESULTS:
        raise typer.BadParameter("give a folder: a tiny model's figures are no results", param_hint="--out")
    out, ends = out.resolve(), time.monotonic() + 60 * minutes
    with nullcontext(work) if work else tempfile.TemporaryDirectory(prefix="internvideo-benchmarks-") as folder:
        place = Path(folder).resolve()
        form = Form(size, bool(card), video.resolve(), place)
        left = list(chosen(form.parts(), only, card, out, again))
        typer.echo(
            f"commit {commit()[:12]}, {card or 'no GPU'}; left: {len(left)} parts, about {sum(p.expected_s for p in left)} s"
        )
        for part in left:
            typer.echo(f"  {part.name}: about {part.expected_s} s")
        if list_only:
            return
        place.mkdir(parents=True, exist_ok=True)
        failed, waiting = run_all(left, form, out, tokenizer_model, ends)
    typer.echo("\n".join(["", *table(targets.rows(partial(read, folder=out)))]))
    if waiting:
        typer.echo(f"left: {', '.join(waiting)}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def chosen(parts: list[Part], only: str, card: str, out: Path, again: bool) -> Iterable[Part]:
    """Those that are wanted, can run here, and have no result yet; says which cannot.

    Args:
        parts: All.
        only: Names with commas between; nothing: all.
        card: As `gpus` says.
        out: Folder of the results.
        again: Whether those with a result are wanted, too.
    """
    names = [name for name in only.split(",") if name]
    if unknown := set(names) - {part.name for part in parts}:
        raise typer.BadParameter(f"no part {', '.join(sorted(unknown))}: {', '.join(p.name for p in parts)}", param_hint="--only")
    count = sum(int(each.split()[0]) for each in card.split(", ") if each)
    for part in parts:
        if names and part.name not in names:
            continue
        if why := part.lacks(count):
            typer.echo(f"{part.name}: left out, it {why}")
        elif again or not measured(part, card, out):
            yield part


def measured(part: Part, card: str, out: Path) -> bool:
    """Whether it has a result of this commit on such a card with this driver; how many cards there are does not count."""
    result = read(part.name, out)
    return result is not None and result["machine"]["commit"] == commit() and _kind(result["machine"]["gpu"]) == _kind(card)


def _kind(card: str) -> str:
    return card.partition(" x ")[2]


def run_all(parts: list[Part], form: Form, out: Path, tokenizer_model: Path | None, ends: float) -> tuple[list[str], list[str]]:
    """Run them one after another.

    Returns:
        The names of those that failed, and of those for which no time was left.
    """
    failed, waiting = [], []
    for number, part in enumerate(parts, 1):
        if time.monotonic() + part.expected_s > ends:
            waiting.append(part.name)
            continue
        typer.echo(f"\n{number}/{len(parts)} {part.name}: about {part.expected_s} s, at most {part.limit_s}")
        began = time.monotonic()
        fault = (part.slots and prepare(part, form, tokenizer_model)) or measure(part, out)
        if fault:
            failed.append(part.name)
        typer.echo(f"{part.name}: {fault or 'done'}, {time.monotonic() - began:.0f} s")
    return failed, waiting


def prepare(part: Part, form: Form, tokenizer_model: Path | None) -> str:
    """Checkpoint and engine directory as the part needs them, made or set; what went wrong, or nothing."""
    checkpoint = form.work / "checkpoint"
    if not checkpoint.exists():
        make = ["build_scripts/make_checkpoint.py", "--size", form.size, "--out", str(checkpoint)]
        make += ["--shards", "16", *(["--tokenizer-model", str(tokenizer_model)] if tokenizer_model else [])] * form.full
        if fault := run(make, _CHECKPOINT_S):
            return f"checkpoint: {fault}"
    export = ["build_scripts/export_llm.py", str(checkpoint), "--out", str(form.work / "engine")]
    fault = run([*export, "--max-batch-size", str(part.slots), "--max-frames", str(part.frames)], _EXPORT_S)
    return f"engine: {fault}" if fault else ""


def measure(part: Part, out: Path) -> str:
    """Run the part; its files take their place when it has ended well. What went wrong, or nothing."""
    unfinished = out / "unfinished"
    unfinished.mkdir(parents=True, exist_ok=True)
    if fault := run([f"benchmarks/{part.program}.py", *part.options, "--name", str(unfinished / part.name)], part.limit_s):
        return fault
    for file in unfinished.iterdir():
        if file.stem in (part.name, f"{part.name}_accuracy"):
            file.replace(out / file.name)
    return ""


def run(arguments: list[str], limit_s: float) -> str:
    """What went wrong, or nothing. The program and all that it started end within its limit."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    environment["PYTHONUNBUFFERED"] = "1"
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            code = process.wait(limit_s)
            return f"failed (exit code {code})" if code else ""
        except subprocess.TimeoutExpired:
            return f"stopped after {limit_s} s"
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # it stops its servers
                try:
                    process.wait(ENDING_S)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    typer.run(main)
