"""`internvideo doctor` on the command line: exit code, text and JSON."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from internvideo_client.cli import app

PORTS = ["--port", "0", "--triton-http-port", "0", "--triton-grpc-port", "0", "--triton-metrics-port", "0"]


def test_exit_code_0_when_all_is_well(checkpoint: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--checkpoint", str(checkpoint), "--device", "cpu", *PORTS])
    assert result.exit_code == 0, result.output
    assert "ok       checkpoint" in result.output


def test_exit_code_1_and_the_fix_when_something_failed(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--checkpoint", str(tmp_path), "--device", "cpu", "--json", *PORTS])
    assert result.exit_code == 1
    document = json.loads(result.output)
    assert document["ok"] is False
    [failed] = [check for check in document["checks"] if check["status"] == "failed"]
    assert failed["name"] == "checkpoint"
    assert failed["message"] == f"{tmp_path / 'config.json'} is missing"
    assert failed["fix"]
