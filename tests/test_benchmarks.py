"""make bench-gpu: each part's options are those of its program, what is measured is left out, and every part runs on a CPU."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import all as benchmarks
from benchmarks.clips import make_clips, make_pictures
from benchmarks.end_to_end import server_settings
from benchmarks.memory import Peak
from benchmarks.parts import DECODE, Form, Part
from benchmarks.report import COMMIT_VARIABLE, command_line, page, read, surroundings, write
from build_scripts.checkpoint_sizes import Size
from internvideo_server.preprocessing.video.inspect import timeline_of
from tests.asking import until
from tests.conftest import ROOT

VIDEO = ROOT / "examples" / "demo.mp4"
CARD = "1 x NVIDIA H200 driver 580.159.04"


def parts(size: Size, *, gpu: bool) -> list[Part]:
    return Form(size, gpu, VIDEO, Path("/work")).parts()


@pytest.mark.parametrize(("size", "gpu"), [(Size.FULL, True), (Size.TINY, True), (Size.TINY, False)])
def test_every_program_and_the_server_know_their_options(size: Size, gpu: bool, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    found = Form(size, gpu, VIDEO, tmp_path).parts()
    assert len({part.name for part in found}) == len(found)
    for part in found:
        app = typer.Typer()
        app.command()(importlib.import_module(f"benchmarks.{part.program}").main)
        context = typer.main.get_command(app).make_context(part.program, [*part.options, "--name", "x"])
        if part.program == "engine":
            assert max(context.params["streams"]) <= part.slots
        if part.program in ("end_to_end", "neighbours"):
            assert server_settings(list(context.params["serve"])).max_frames == part.frames
            assert max(context.params["num_frames"]) <= part.frames


def result(folder: Path, name: str, **machine: Any) -> None:
    machine = {"commit": "c", "gpu": CARD, **machine}
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine, "rows": []}))


def test_what_was_measured_on_this_commit_and_card_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "c")
    three = [Part(name, "decode", [], 10) for name in ("one", "two", "three")]
    result(tmp_path, "one")
    result(tmp_path, "two", commit="older")
    result(tmp_path, "three", gpu="1 x NVIDIA H100 driver 580.159.04")
    for card in (CARD, "2 x NVIDIA H200 driver 580.159.04"):
        assert [part.name for part in benchmarks.chosen(three, "", card, tmp_path, False)] == ["two", "three"]
    assert [part.name for part in benchmarks.chosen(three, "", CARD, tmp_path, True)] == ["one", "two", "three"]
    assert [part.name for part in benchmarks.chosen(three, "one,two", CARD, tmp_path, False)] == ["two"]
    with pytest.raises(typer.BadParameter, match="no part four"):
        list(benchmarks.chosen(three, "four", CARD, tmp_path, False))


def test_what_a_host_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    two = [Part("replicas", "end_to_end", [], 10, gpus=2), Part("peer", "peer", [], 10, vllm=True, on_cpu=False)]
    assert list(benchmarks.chosen(two, "", CARD, tmp_path, False)) == []
    assert "replicas: left out, it needs 2 GPUs\npeer: left out, it needs vLLM" in capsys.readouterr().out
    assert list(benchmarks.chosen(two, "", "", tmp_path, False)) == two[:1]
    assert "peer: left out, it needs a GPU" in capsys.readouterr().out


def test_a_part_that_fails_stops_no_other_and_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(arguments: list[str], limit_s: float) -> str:
        ran.append(arguments[0])
        if not arguments[0].startswith("benchmarks/"):
            return ""
        name = Path(arguments[-1])
        name.with_name(f"{name.name}.json").write_text("{}")
        return "failed (exit code 1)" if name.name == "vision" else ""

    monkeypatch.setattr(benchmarks, "run", run)
    found = [part for part in parts(Size.FULL, gpu=True) if part.name in ("vision", "handoff", "peer")]
    form = Form(Size.FULL, True, VIDEO, tmp_path / "work")
    failed, waiting = benchmarks.run_all(found[:2], form, tmp_path, None, float("inf"))
    assert (failed, waiting) == (["vision"], [])
    assert read("handoff", tmp_path) == {} and read("vision", tmp_path) is None
    assert benchmarks.run_all(found, form, tmp_path, None, 0.0) == ([], ["vision", "handoff", "peer"])
    ran.clear()
    benchmarks.run_all(found[2:], form, tmp_path, None, float("inf"))
    assert ran == ["build_scripts/make_checkpoint.py", "build_scripts/export_llm.py", "benchmarks/peer.py"]


@pytest.mark.parametrize(
    ("code", "limit_s", "fault"),
    [("", 30, ""), ("raise SystemExit(3)", 30, "failed (exit code 3)"), ("import time; time.sleep(60)", 1, "stopped after 1 s")],
)
def test_a_part_says_how_it_ended(code: str, limit_s: int, fault: str) -> None:
    assert benchmarks.run(["-c", code], limit_s) == fault


def test_a_result_says_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "0123456789abcdef+")
    write(str(tmp_path / "r"), surroundings("numpy", "nothing-of-that-name"), [{"s": 0.12345, "what": "x"}], "Best of 3.")
    found = read("r", tmp_path)
    assert found is not None and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["date"])
    text = (tmp_path / "r.md").read_text()
    assert text == page(found) and "| 0.123 | x |" in text
    for part in (
        "Commit 0123456789ab, with changes",
        found["date"],
        "numpy 1.26",
        "nothing-of-that-name not installed",
        "Best of 3.",
    ):
        assert part in text


def test_a_command_is_shown_without_folders_and_places() -> None:
    arguments = [str(ROOT / "benchmarks/x.py"), "/a/b/v.mp4", "--name", "/a/r", "--serve", "mps=off", "--caches", "no server"]
    assert command_line(arguments) == "python benchmarks/x.py v.mp4 --serve mps=off --caches 'no server'"


def test_clips_differ_are_long_enough_and_are_made_once(tmp_path: Path) -> None:
    frames = timeline_of(str(VIDEO)).frame_count
    clips = make_clips(VIDEO, tmp_path, 3, 2 * frames)
    counts = [timeline_of(str(clip)).frame_count for clip in clips]
    assert len(set(counts)) == 3 and min(counts) >= 2 * frames
    before = [clip.stat().st_mtime_ns for clip in clips]
    assert [clip.stat().st_mtime_ns for clip in make_clips(VIDEO, tmp_path, 3, 2 * frames)] == before


def test_no_two_pictures_are_equal(tmp_path: Path) -> None:
    rows = make_pictures(VIDEO, tmp_path, 3, 4)
    assert len({picture.read_bytes() for row in rows for picture in row}) == 12


def test_the_peak_is_that_of_the_processes_looked_at() -> None:
    code = "import sys; held = bytearray(b'x' * (200 << 20)); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"\n"
        with Peak(lambda: [process.pid, 1 << 30]) as peak:
            pass
        process.communicate(b"")
    assert 200 < peak.host_mib < 300


def test_the_peak_of_several_gpus_is_the_sum_of_each_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0, 100\\n1, 20\\n0, 300\\n1, 10\\n0, [N/A]\\n'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Peak(list) as peak:
        until(lambda: peak.gpu_mib >= 320, "the GPUs were not seen")
    assert (peak.gpu_mib, peak.host_mib) == (320, 0)


@pytest.mark.ci
def test_every_part_runs_in_its_smallest_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of those with the same options, whatever their values."""
    alike: dict[frozenset[str], str] = {}
    for part in Form(Size.TINY, False, VIDEO, tmp_path).parts():
        if not part.lacks(0):
            alike.setdefault(frozenset([part.program, *(word for word in part.options if word.startswith("--"))]), part.name)
    out = tmp_path / "out"
    monkeypatch.setenv(COMMIT_VARIABLE, "c")  # somebody may commit meanwhile
    command = [sys.executable, "-m", "benchmarks.all", str(VIDEO), "--size=tiny", f"--out={out}", f"--work={tmp_path / 'work'}"]
    done = subprocess.run(
        [*command, "--only", ",".join(alike.values())], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert {DECODE, "vision", "end_to_end_vllm", "end_to_end_old_method", "two_gpus_replicas"} <= set(alike.values())
    for name in alike.values():
        assert (found := read(name, out)) and found["rows"], name
    again = subprocess.run([*command, "--list"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert all(f"  {name}:" not in again.stdout for name in alike.values())


@pytest.mark.ci
def test_two_cores_are_measured_by_a_cold_and_a_warm_start(tmp_path: Path) -> None:
    options = "--model demo --frames 8 --most-streams 2 --videos 1 --new-tokens 4".split()
    command = [sys.executable, "-m", "benchmarks.cpu", *options, "--name", str(tmp_path / "cpu")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (found := read("cpu", tmp_path))
    assert [row["model"] for row in found["rows"]] == ["demo"]
    assert all(value > 0 for name, value in found["rows"][0].items() if name != "model")
