"""Exports in the cache: made once, shared by runs with other limits, listed and cleared."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from internvideo_client.cli import app
from internvideo_server.launch import Device, LaunchError, _engine_cache, cached_engines
from internvideo_server.launch._processes import Run
from internvideo_server.launch._progress import Progress
from internvideo_server.limits import EngineLimits
from internvideo_server.settings import ServeSettings

Engine = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERNVIDEO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def lines() -> list[str]:
    """What the person at the terminal was told."""
    return []


@pytest.fixture
def engine(cache: Path, checkpoint: Path, tmp_path: Path, lines: list[str]) -> Iterator[Engine]:
    """Makes the engine directory of one more run, which goes on until the test ends."""
    with ExitStack() as stack, Run() as run:

        def make(**settings: object) -> Path:
            directory = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
            directory.mkdir()
            options = ServeSettings(checkpoint=checkpoint, **settings)  # type: ignore[arg-type]
            progress = Progress(report=lines.append, warn=lines.append)
            made = _engine_cache.exported_engine(options, checkpoint, Device(None), run, directory, progress)
            return stack.enter_context(made)

        yield make


def test_two_runs_with_other_limits_share_one_export(engine: Engine, lines: list[str]) -> None:
    first, second = engine(max_frames=128), engine(max_frames=16, num_frames=16)
    assert lines == ["exporting the language model (once per checkpoint)"]
    assert [EngineLimits.from_engine_dir(each).max_frames for each in (first, second)] == [128, 16]
    assert (first / "llama").resolve() == (second / "llama").resolve()


def test_another_dtype_or_format_is_another_export(engine: Engine, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine()
    engine(dtype="bfloat16")
    monkeypatch.setattr(_engine_cache, "FORMAT", 99)
    engine()
    assert len(lines) == len(cached_engines()) == 3


def test_a_damaged_export_is_made_anew_and_told(engine: Engine, lines: list[str]) -> None:
    weights = next((engine() / "llama").resolve().glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    engine()
    assert "is damaged" in lines[1] and "made anew" in lines[1]
    assert lines[2:] == lines[:1]


def test_a_failed_export_shows_its_words_and_leaves_nothing_in_the_cache(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "fake_export.py").write_text("import sys; sys.exit('no space left for the engine')")
    monkeypatch.setattr(_engine_cache, "_EXPORT", "fake_export")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "scripts"))
    with pytest.raises(LaunchError, match=r"the export ended with exit code 1[\s\S]*no space left"):
        engine()
    assert cached_engines() == []


def test_what_a_killed_launcher_left_half_made_goes_and_what_is_being_made_stays(cache: Path, engine: Engine) -> None:
    beside = engine().joinpath("llama").resolve().parent.parent
    left, at_work = beside / ".bfloat16-1-left", beside / ".bfloat16-1-work"
    for directory in (left, at_work):
        directory.mkdir()
        (directory / "lock").touch()
        (directory / "made").mkdir()
    with open(at_work / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine(dtype="bfloat16")
        assert [path for path in (left, at_work) if path.exists()] == [at_work]
        assert {each.dtype for each in cached_engines()} == {"float32", "bfloat16"}


def test_a_disk_that_has_no_room_for_the_export_is_said_before(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 10))
    with pytest.raises(
        LaunchError, match=r"has 0\.0 GiB free, and the export of the language model takes about .*INTERNVIDEO_CACHE"
    ):
        engine()


def test_a_checkpoint_that_is_none_is_refused(cache: Path, tmp_path: Path) -> None:
    options = ServeSettings(checkpoint=tmp_path)
    with (
        Run() as run,
        pytest.raises(LaunchError, match=r"config.json"),
        _engine_cache.exported_engine(options, tmp_path, Device(None), run, tmp_path, Progress()),
    ):
        pass


def test_clearing_keeps_what_is_current_and_all_but_what_a_run_uses(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    used = (engine() / "llama").resolve().parent
    for name in ("float32-0", f"bfloat16-{_engine_cache.FORMAT}"):
        (used.parent / name).mkdir()
    listed = CliRunner().invoke(app, ["cache", "list"], env={"COLUMNS": "120"}).stdout
    assert "old format" in listed and used.parent.name in listed
    CliRunner().invoke(app, ["cache", "clear"])
    assert {each.path.name for each in cached_engines()} == {used.name, f"bfloat16-{_engine_cache.FORMAT}"}
    CliRunner().invoke(app, ["cache", "clear", "--all"])
    assert [each.path for each in cached_engines()] == [used]
