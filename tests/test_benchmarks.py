"""All benchmarks in one command: each step's options are those of its program, and one that fails does not stop the others."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path

import pytest
import typer

from benchmarks import all as benchmarks
from benchmarks.all import Benchmark, Step
from build_scripts._checkpoint_layout import Size


def steps(tmp_path: Path, size: Size, *, gpu: bool, tokenizer: Path | None = None) -> list[Step]:
    return list(benchmarks.plan(list(Benchmark), size, gpu, Path("v.mp4"), tmp_path / "work", tmp_path / "out", tokenizer))


@pytest.mark.parametrize(("size", "gpu"), [(Size.FULL, True), (Size.TINY, True), (Size.TINY, False)])
def test_every_program_knows_its_options(tmp_path: Path, size: Size, gpu: bool) -> None:
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.touch()
    (tmp_path / "v.mp4").touch()
    planned = steps(tmp_path, size, gpu=gpu, tokenizer=tokenizer)
    assert [step.name for step in planned] == ["checkpoint", "vision", "handoff", "engine", "export", "end_to_end", "decode"]
    for step in planned:
        program, *arguments = step.arguments
        app = typer.Typer()
        app.command()(importlib.import_module(program.removesuffix(".py").replace("/", ".")).main)
        context = typer.main.get_command(app).make_context(program, [str(argument) for argument in arguments])
        assert step.expected_s < step.limit_s
        if "name" in context.params:
            assert Path(context.params["name"]).parent == tmp_path / "out"


def test_what_needs_a_failed_step_is_left_out_and_the_rest_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(step: Step) -> str:
        ran.append(step.name)
        return "failed (exit code 1)" if step.name in ("checkpoint", "handoff") else ""

    monkeypatch.setattr(benchmarks, "run", run)
    failed = benchmarks.run_all(steps(tmp_path, Size.FULL, gpu=True))
    assert failed == ["checkpoint", "handoff", "export", "end_to_end"]
    assert ran == ["checkpoint", "vision", "handoff", "engine", "decode"]
    assert "export: left out, it needs checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "limit_s", "fault"),
    [("", 30, ""), ("raise SystemExit(3)", 30, "failed (exit code 3)"), ("import time; time.sleep(60)", 1, "stopped after 1 s")],
)
def test_a_step_says_how_it_ended(code: str, limit_s: int, fault: str) -> None:
    assert benchmarks.run(Step("step", ["-c", code], 1, limit_s)) == fault


def test_the_summary_shows_new_figures_only(tmp_path: Path) -> None:
    began = time.time() - 1
    rows = [
        {"method": "no caches", "streams": 1, "first token s": 0.25},
        {"method": "old method", "streams": 1, "first token s": 2.0},
    ]
    (tmp_path / "end_to_end.json").write_text(json.dumps({"rows": rows}))
    assert "| first token, s | 0.5 | 0.25 | 2 |" in benchmarks.summary(tmp_path, began)
    assert "| videos/s, 16 at once | 5 | - | - |" in benchmarks.summary(tmp_path, began)
    assert "| first token, s | 0.5 | - | - |" in benchmarks.summary(tmp_path, time.time() + 1)
