"""The rendered repository needs no launcher: README's `internvideo tritonserver` line serves it."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from internvideo_server.launch import RunningServer
from tests.asking import ensemble_ids, until
from tests.conftest import ROOT

pytestmark = pytest.mark.server


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_readmes_line_is_the_same_in_both_languages(page: str) -> None:
    assert readme_line(page) == readme_line("README.md")


def test_readmes_plain_tritonserver_streams_from_the_ensemble(
    server: RunningServer, tmp_path: Path, free_ports: list[int]
) -> None:
    http, grpc, metrics = free_ports
    run = server.repository.parent
    assert server.backends == run / "backends"
    program, *arguments = [word.replace("DIR/", f"{run}/") for word in readme_line("README.md")]
    assert program == ".venv/bin/internvideo"
    # Nothing is done about the environment: the command sets what Triton's Python models need.
    command = [str(Path(sys.executable).parent / "internvideo"), *arguments]
    command += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    with (tmp_path / "log").open("w") as log:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: process.poll() is not None or ready(http), "tritonserver was not ready")
            messages = [{"role": "user", "content": "hello"}]
            assert ensemble_ids(f"127.0.0.1:{grpc}", messages, 8) == ensemble_ids(server.grpc_url, messages, 8)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
    assert code == 0, (tmp_path / "log").read_text()[-4000:]


def readme_line(page: str) -> list[str]:
    (line,) = re.findall(r"^\S*internvideo tritonserver (?:.*\\\n)*.*$", (ROOT / page).read_text(), re.MULTILINE)
    return shlex.split(line.replace("\\\n", " "))


def ready(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/v2/health/ready", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False
