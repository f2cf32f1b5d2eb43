"""`internvideo doctor` on the command line: exit code, text and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from internvideo_client.cli import app
from internvideo_server.launch import RunningServer
from tests.fake_triton import FakeTriton, Step, piece, running

PORTS = ["--port", "0", "--triton-grpc-port", "0", "--triton-metrics-port", "0"]


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


@pytest.mark.server
def test_a_running_server_is_looked_at_from_outside(server: RunningServer) -> None:
    for url in (server.adapter_url, f"{server.openai_url}/"):
        result = CliRunner().invoke(app, ["doctor", "--url", url])
        assert result.exit_code == 0, result.output
        assert [line.split()[:2] for line in result.output.splitlines()[:4]] == [
            ["ok", name] for name in ("alive", "ready", "models", "answer")
        ]


def test_a_server_that_is_away_or_unwell_is_told(url: str, fake: FakeTriton) -> None:
    result = CliRunner().invoke(app, ["doctor", "--url", "http://127.0.0.1:9", "--json"])
    assert result.exit_code == 1
    assert "does not answer" in json.loads(result.output)["checks"][0]["message"]
    fake.not_ready.add("server")
    checks = json.loads(CliRunner().invoke(app, ["doctor", "--url", url, "--json"]).output)["checks"]
    assert [check["status"] for check in checks] == ["ok", "failed", "ok", "skipped"]


def test_a_server_with_keys_is_asked_with_the_given_one(fake: FakeTriton, tmp_path: Path) -> None:
    fake.script = [Step([piece("Hello")])]
    with running(fake, tmp_path, api_key=("sesame",)) as url:
        for options, key in ((["--api-key", "sesame"], ""), ([], "sesame")):
            result = CliRunner().invoke(app, ["doctor", "--url", url, *options], env={"INTERNVIDEO_API_KEY": key or None})
            assert result.exit_code == 0, result.output
        refused = CliRunner().invoke(app, ["doctor", "--url", url, "--json"], env={"INTERNVIDEO_API_KEY": None})
    assert (refused.exit_code, json.loads(refused.stdout)["checks"][2]["fix"]) == (1, "--api-key")


def self_test(*arguments: str) -> tuple[int, dict[str, list[str]]]:
    """Exit code, and status and message of each check of the self-test."""
    result = CliRunner().invoke(app, ["doctor", "--self-test", "--device", "cpu", "--json", *arguments])
    checks = json.loads(result.stdout)["checks"]
    return result.exit_code, {check["name"]: [check["status"], check["message"]] for check in checks}


@pytest.mark.server
def test_the_self_test_passes_with_the_demo_model_and_says_what_it_could_not_check() -> None:
    code, checks = self_test(
        "--api-key", "secret", "--allowed-hosts", "example.org"
    )  # doors of the server to come, not of the test
    assert code == 0, checks
    assert checks["weights"] == ["ok", "97 tensors, all values finite"]
    assert checks["tower"] == ["ok", "8 frames became [1, 128, 256] FP32, all finite"]
    assert checks["answer"] == ["ok", "'A yellow star moves to the left. A green triangle moves up.'"]
    for frames, published in (("80 frames", "1894"), ("128 frames", "2998")):
        assert checks[frames][0] == "skipped"
        assert checks[frames][1].endswith(f"the real one makes {published}")
    assert "not checked" in checks["real weights"][1]
    assert "not checked: ran on the CPU" in checks["gpu"][1]


def spoilt(checkpoint: Path, folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    """A checkpoint like the given one, after a change of its tensors."""
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    [shard] = folder.glob("*.safetensors")
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})
    return folder


def test_the_self_test_finds_weights_that_are_not_finite_and_starts_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["language_model.model.norm.weight"][3:5] = np.nan, np.inf

    code, checks = self_test("--checkpoint", str(spoilt(checkpoint, tmp_path, change)))
    assert code == 1
    assert checks["weights"] == ["failed", "not finite: language_model.model.norm.weight (2 of 64 values)"]
    assert checks["self-test"][0] == "skipped"
    assert "answer" not in checks


def test_the_self_test_starts_nothing_with_a_checkpoint_of_a_wrong_shape(checkpoint: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["mlp1.0.weight"] = np.ones(3, np.float32)

    code, checks = self_test("--checkpoint", str(spoilt(checkpoint, tmp_path, change)))
    assert code == 1
    assert checks["checkpoint"][0] == "failed"
    assert "mlp1.0.weight is [3], config.json makes it [256]" in checks["checkpoint"][1]
    assert "nothing was started" in checks["self-test"][1]


@pytest.mark.ci
def test_the_self_test_finds_a_tower_that_leaves_its_dtype_and_a_prompt_that_is_not_the_published_one(
    checkpoint: Path, tmp_path: Path
) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["mlp1.1.weight"][:] = 3e38  # finite itself, its sums are not

    code, checks = self_test("--checkpoint", str(spoilt(checkpoint, tmp_path, change)))
    assert code == 1
    assert checks["weights"][0] == "ok"
    assert checks["tower"][0] == "failed"
    assert "are not finite in FP32" in checks["tower"][1]
    assert checks["128 frames"][0] == "failed"  # this checkpoint's vocabulary is small
    assert checks["128 frames"][1].endswith("published are 2998")
    assert checks["answer"][0] in ("failed", "warning")
    assert "real weights" not in checks


def test_the_self_test_is_not_for_a_running_server() -> None:
    result = CliRunner().invoke(app, ["doctor", "--self-test", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "leave out --url" in result.stderr
