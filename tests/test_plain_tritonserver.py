"""The rendered repository needs no launcher: a plain `tritonserver --model-repository` serves it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import httpx2
import pytest

from internvideo_server.launch import RunningServer, find_tritonserver
from tests.asking import ensemble_ids, until

pytestmark = pytest.mark.server


def test_plain_tritonserver_streams_from_the_ensemble(server: RunningServer, tmp_path: Path, free_ports: list[int]) -> None:
    triton = find_tritonserver()
    http, grpc, metrics = free_ports
    command = [str(triton.binary), f"--model-repository={server.repository}", f"--backend-directory={server.backends}"]
    command += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", "--http-address=127.0.0.1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=triton.environment(os.environ), stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: process.poll() is not None or ready(http), "tritonserver was not ready")
            messages = [{"role": "user", "content": "hello"}]
            assert ensemble_ids(f"127.0.0.1:{grpc}", messages, 8) == ensemble_ids(server.grpc_url, messages, 8)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
    assert code == 0, (tmp_path / "log").read_text()[-4000:]


def ready(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/v2/health/ready", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False
