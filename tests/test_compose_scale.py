"""docker/compose.scale.yaml, as docker-compose and HAProxy understand it. No image is built here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from internvideo_client.cli import app
from internvideo_server.launch.router import Replica
from internvideo_server.settings import variable
from tests.router_lab import needs_haproxy
from tests.test_docker import DOCKER, flags_in, serve_flags


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("needs docker-compose: apt install docker-compose")
    command = [program, "-f", str(DOCKER / "compose.scale.yaml"), "--profile", "scale", "config"]
    document = yaml.safe_load(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    found: dict[str, Any] = document["services"]
    return found


def test_each_replica_is_called_as_the_router_calls_it(services: dict[str, Any]) -> None:
    known = [Replica.parse(each.partition("=")[2]) for each in services["router"]["command"] if each.startswith("--replica=")]
    replicas = {name: service for name, service in services.items() if name != "router"}
    assert [(each.name, each.host, each.port) for each in known] == [(name, name, 9997) for name in replicas] and len(known) == 3
    for name, service in replicas.items():
        assert service["environment"] == {variable("replica_name"): name}
        assert service["command"][0] == "serve" and flags_in(service["command"]) <= serve_flags()
        assert "ports" not in service


def test_haproxy_takes_what_the_router_is_told(services: dict[str, Any], tmp_path: Path) -> None:
    haproxy = needs_haproxy()
    result = CliRunner().invoke(app, [*services["router"]["command"], "--print"])
    assert result.exit_code == 0, result.output
    (tmp_path / "haproxy.cfg").write_text(result.stdout.replace("/tmp/router/", f"{tmp_path}/"))
    checked = subprocess.run(
        [str(haproxy), "-c", "-f", str(tmp_path / "haproxy.cfg")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0 and "WARNING" not in checked.stderr, checked.stderr
    assert services["router"]["ports"] == ["127.0.0.1:9990:9990/tcp"]
