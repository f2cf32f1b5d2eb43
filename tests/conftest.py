"""Fixtures shared by all tests: golden data where it exists, and one real server a session."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from build_scripts.make_checkpoint import make_checkpoint
from internvideo_server.engine import Engine
from internvideo_server.launch import RunningServer, start
from internvideo_server.settings import ServeSettings
from tests import engine_lab
from tests.asking import FREE_PORTS
from tests.fake_triton import FakeTriton, running
from tests.launch_lab import Lab
from tests.launch_runs import laboratory
from tests.router_lab import Replicas, Router, needs_haproxy
from tests.silence import Silence

# A shell's background jobs ignore it, and programs inherit that: then those that tests end so would live on.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("any-load", deadline=None)  # a busy machine is not a fault
hypothesis.settings.load_profile("any-load")

for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]  # the servers of the tests are on this machine


_silence = Silence()


def pytest_runtest_call(item: pytest.Item) -> None:
    """A server that went silent costs one test's patience, not that of every later test."""
    _silence.refuse(getattr(item, "funcargs", {}))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Look for such a server after each failure."""
    report = yield
    if report.failed:
        _silence.look(getattr(item, "funcargs", {}))
    return report


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
    options = ServeSettings(
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


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Trivial models for the real tritonserver; no run of theirs leaves anything."""
    with laboratory(tmp_path, monkeypatch) as lab:
        yield lab


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Adapters with a scripted Triton each."""
    needs_haproxy()
    with ExitStack() as stack:
        yield Replicas(tmp_path_factory.mktemp("replicas"), stack)


@pytest.fixture(scope="module")
def router(replicas: Replicas, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """A real HAProxy before them."""
    with Router(tmp_path_factory.mktemp("router"), replicas.options) as running:
        yield running


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Of the engine: each test that asks for it runs on a GPU, too."""
    return str(request.param)


@pytest.fixture(scope="module")
def engine_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint's engine directory."""
    return engine_lab.export(checkpoint, tmp_path_factory.mktemp("engine") / "tiny")


@pytest.fixture(scope="module")
def engine(engine_dir: Path, device: str) -> Iterator[Engine]:
    """The embedded engine, without Triton, once a file."""
    running = engine_lab.start(engine_dir, device)
    yield running
    running.close()
