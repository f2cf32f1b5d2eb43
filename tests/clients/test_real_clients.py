"""Real clients, each in an environment of its own, against the real server with the demo model."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from internvideo_server.launch import RunningServer, start
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS
from tests.conftest import ROOT

pytestmark = [pytest.mark.ci, pytest.mark.server]

SUITES = Path(__file__).parent / "suites"
ENVIRONMENTS = ROOT / ".venv" / "clients"  # made by `make test-ci` of the files beside this one
KEY = "a-key-of-the-tests"
MOST_SECONDS = 240
RUNS = [
    ("newest", "openai_sdk"),
    ("newest", "langchain_openai_chat"),
    ("newest", "schemathesis_run"),
    ("openai2", "openai_sdk"),
    ("openai2", "langchain_openai_chat"),
    ("openai2", "litellm_router"),
    ("openai2", "llama_index_like"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Path]]:
    media = tmp_path_factory.mktemp("media")
    video = Path(shutil.copy(ROOT / "examples" / "demo.mp4", media))
    options = ServeSettings(
        device="cpu",
        num_frames=8,
        allowed_local_media_path=(media,),
        api_key=(KEY,),
        served_model_name=("InternVideo2_5", "video-chat"),
        **FREE_PORTS,
    )
    with start(options) as running:
        yield running, video


@pytest.mark.parametrize(("environment", "suite"), RUNS)
def test_a_client(served: tuple[RunningServer, Path], environment: str, suite: str, tmp_path: Path) -> None:
    python = ENVIRONMENTS / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"make {python.parents[1].relative_to(ROOT)}/.setup makes the environment of these clients")
    running, video = served
    told = {"CLIENTS_URL": running.adapter_url, "CLIENTS_KEY": KEY, "CLIENTS_VIDEO": str(video)}
    # Without this project's conftest.py and settings of pytest: nothing of the server is in that environment.
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        "--noconftest",
        "-c",
        os.devnull,
        "-p",
        "no:cacheprovider",
        f"{suite}.py",
    ]
    ran = subprocess.run(
        command, cwd=SUITES, env=_environment(tmp_path) | told, timeout=MOST_SECONDS, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


def _environment(home: Path) -> dict[str, str]:
    """Of a client that finds nothing of whoever runs the tests, and asks nobody but the server."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1"}
    return kept | offline | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
