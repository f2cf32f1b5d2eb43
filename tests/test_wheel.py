"""The wheel in an environment of its own, in an empty folder, without the clone: everything that serving needs is in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable

import pytest

from internvideo_server import __version__
from tests.conftest import ROOT

pytestmark = [pytest.mark.server, pytest.mark.ci]

Installed = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Runs the installed ``internvideo``. The heavy dependencies are this environment's, the project is the wheel's."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    site = next((environment / "lib").glob("python*/site-packages"))
    # A path named in a .pth file is searched, but its own .pth files are not read: the clone stays unknown.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    empty = folder / "empty"
    empty.mkdir()
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("INTERNVIDEO_", "PYTHON"))}
    variables |= {"INTERNVIDEO_CACHE": str(folder / "cache"), "PATH": f"{environment / 'bin'}{os.pathsep}{variables['PATH']}"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = environment / "bin" / "internvideo"
        return subprocess.run([program, *arguments], cwd=empty, env=variables, capture_output=True, text=True, timeout=300)

    return run


def test_the_installed_demo_answers_rightly(installed: Installed) -> None:
    result = installed("demo", "--json", "--num-frames", "8", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["answer"] == "A yellow star moves to the left. A green triangle moves up."


def test_the_installed_doctor_finds_the_model_repository_in_the_package(installed: Installed) -> None:
    report = json.loads(installed("doctor", "--json", "--device", "cpu", "--port", "0").stdout)
    (repository,) = [check for check in report["checks"] if check["name"] == "model repository"]
    assert repository["message"].endswith("internvideo_server/_project/model_repository")


def test_the_version_has_one_home(installed: Installed) -> None:
    assert installed("--version").stdout == f"{__version__}\n"
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
