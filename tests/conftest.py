"""Fixtures shared by all tests: golden data where it exists, and one real server a session."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from build_scripts.make_checkpoint import make_checkpoint
from internvideo_server.launch import RunningServer, ServeOptions, start
from tests.asking import FREE_PORTS
from tests.fake_triton import FakeTriton, running

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("any-load", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("any-load")

for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]  # the servers of the tests are on this machine


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Golden data of the original model and the test video: ``../shared`` or ``$INTERNVIDEO_SHARED``; not part of the project."""
    path = Path(os.environ.get("INTERNVIDEO_SHARED", ROOT.parent / "shared"))
    if not (path / "golden").is_dir():
        pytest.skip(f"needs the golden data of the original model in {path} (or set INTERNVIDEO_SHARED)")
    return path


@pytest.fixture(scope="session")
def golden(shared_dir: Path) -> Path:
    """The golden case: a tiny checkpoint in the real layout, and what the original code computed with it."""
    return shared_dir / "golden" / "tiny_s7"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint of the project's own, in the real file layout."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_checkpoint(path, size="tiny", seed=0)
    return path


@pytest.fixture(scope="session")
def media_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``file://`` URLs may name at the session's server: tests may put files there."""
    path = tmp_path_factory.mktemp("media")
    for video in (ROOT / "tests" / "data").glob("*.*[4m]"):
        shutil.copy(video, path)
    return path


@pytest.fixture(scope="session")
def server(checkpoint: Path, media_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The whole system on free ports, once a session."""
    options = ServeOptions(
        checkpoint=checkpoint,
        device="cpu",
        allowed_local_media_path=(media_dir,),
        run_directory=tmp_path_factory.mktemp("run"),
        **FREE_PORTS,
    )
    with start(options) as running:
        yield running


@pytest.fixture
def fake() -> FakeTriton:
    """A scripted Triton."""
    return FakeTriton()


@pytest.fixture
def url(fake: FakeTriton, tmp_path: Path) -> Iterator[str]:
    """An adapter in front of it."""
    with running(fake, tmp_path) as base:
        yield base


@pytest.fixture
def free_ports() -> list[int]:
    """Three ports that were free a moment ago."""
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for each in (a, b, c):
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in (a, b, c)]
