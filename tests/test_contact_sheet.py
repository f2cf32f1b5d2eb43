"""The demo's contact sheet: the sampled frames in a terminal of all colours, else as a file."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from internvideo_client import _contact_sheet as sheet
from internvideo_client.cli import _right_answer

PLAIN = {**os.environ, "TERM": "dumb", "NO_COLOR": "1"}
DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo.mp4"


@pytest.fixture(scope="module")
def frames() -> list[Image.Image]:
    return sheet.sample(DEMO)


def terminal(colours: str | None, width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=colours is not None, color_system=colours, width=width)  # type: ignore[arg-type]


def test_a_terminal_of_all_colours_shows_two_rows_of_four_frames(frames: list[Image.Image]) -> None:
    console = terminal("truecolor")
    assert len(frames) == 8 and sheet.show(frames, console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line for line in output.splitlines() if "▀" in line]
    assert {line.count("▀") for line in lines} == {4 * 18} and len(lines) == 2 * 9
    assert "38;2;" in output


@pytest.mark.parametrize(("colours", "width"), [(None, 80), ("256", 80), ("standard", 80), ("truecolor", 20)])
def test_any_other_output_is_left_alone(frames: list[Image.Image], colours: str | None, width: int) -> None:
    console = terminal(colours, width)
    assert not sheet.show(frames, console)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_the_file_lies_where_it_was_asked_for(frames: list[Image.Image], tmp_path: Path) -> None:
    sheet.save(frames, tmp_path / "film.png")
    with Image.open(tmp_path / "film.png") as picture:
        assert picture.size == (4 * 224, 2 * 224)


def test_what_is_no_video_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"no video")
    for name, said in (("film.mp4", "film.mp4: "), ("absent.mp4", "absent.mp4: No such file or directory")):
        command = [sys.executable, "-m", "internvideo_client.cli", "demo", str(tmp_path / name), "--device", "cpu"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=PLAIN)
        assert result.returncode == 1
        assert said in result.stderr
        assert "starting" not in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"film.mp4"}


@pytest.mark.parametrize(
    ("arguments", "written"), [([], "demo.frames.png"), (["--out", "sheet.jpg"], "sheet.jpg"), (["--json"], None)]
)
def test_the_demo_writes_into_the_current_folder(tmp_path: Path, arguments: list[str], written: str | None) -> None:
    """Up to the server's start, which is made to fail."""
    before = set(DEMO.parent.iterdir())
    video = ["--checkpoint", str(tmp_path / "absent")]
    command = [sys.executable, "-m", "internvideo_client.cli", "demo", str(DEMO), *video, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=PLAIN)
    assert result.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ([] if written is None else [written])
    assert set(DEMO.parent.iterdir()) == before


def test_right_answers_come_from_a_file_beside_the_video(tmp_path: Path) -> None:
    assert _right_answer(DEMO, "Describe the video.") == "A yellow star moves to the left. A green triangle moves up."
    assert _right_answer(DEMO, "What is love?") is None
    assert _right_answer(tmp_path / "film.mp4", "Describe the video.") is None
    for content in ("[]", "{", json.dumps({"a": 1})):
        (tmp_path / "film.json").write_text(content)
        assert _right_answer(tmp_path / "film.mp4", "a") is None
