"""The demo's contact sheet: the sampled frames in a terminal of all colours, else as a file."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from internvideo_client import _contact_sheet as sheet
from internvideo_client.cli import _right_answer

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo.mp4"


@pytest.fixture(scope="module")
def frames() -> list[Image.Image]:
    found = sheet.sample(DEMO)
    assert found is not None
    return found


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


def test_the_file_lies_beside_the_video_or_where_writing_is_allowed(
    frames: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = sheet.save(frames, tmp_path / "film.mp4")
    assert path == tmp_path / "film.frames.png"
    with Image.open(path) as picture:
        assert picture.size == (4 * 224, 2 * 224)
    elsewhere = sheet.save(frames, tmp_path / "absent" / "film.mp4")
    assert elsewhere.name == "film.frames.png" and elsewhere.is_file()


def test_what_is_no_video_has_no_frames(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"no video")
    assert sheet.sample(tmp_path / "film.mp4") is None
    with pytest.raises(FileNotFoundError):
        sheet.sample(tmp_path / "absent.mp4")


def test_right_answers_come_from_a_file_beside_the_video(tmp_path: Path) -> None:
    assert _right_answer(DEMO, "Describe the video.") == "A yellow star moves to the left. A green triangle moves up."
    assert _right_answer(DEMO, "What is love?") is None
    assert _right_answer(tmp_path / "film.mp4", "Describe the video.") is None
    for content in ("[]", "{", json.dumps({"a": 1})):
        (tmp_path / "film.json").write_text(content)
        assert _right_answer(tmp_path / "film.mp4", "a") is None
