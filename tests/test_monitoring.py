"""docker/monitoring: Prometheus takes the files, the alerts fire when they should, and every metric is there on a real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest
import yaml

from build_scripts.grafana_dashboard import DASHBOARD, dashboard
from internvideo_server.launch import RunningServer
from internvideo_server.metrics import METRICS, of_model
from tests.asking import answer, client, text_part, video_part
from tests.conftest import ROOT

MONITORING = ROOT / "docker" / "monitoring"
#: Of Triton, where there is a GPU.
ON_GPUS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes"}
_METRIC = re.compile(r"\b(?:internvideo|nv)_[a-z_]+\b")


def expressions() -> list[str]:
    """All queries of the dashboard and the alerts."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])] + [rule["expr"] for rule in rules]


@pytest.fixture(scope="module")
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    return program


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ],
    ids=["configuration", "rules", "when the alerts fire"],
)
def test_promtool_takes(promtool: str, arguments: list[str]) -> None:
    result = subprocess.run([promtool, *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_dashboards_queries_are_promql(promtool: str, tmp_path: Path) -> None:
    """Grafana's variables stand for what it puts in."""
    known = [each.replace("$__rate_interval", "1m").replace("$instance", ".*") for each in expressions()]
    rules = [{"record": f"rule:{number}", "expr": expression} for number, expression in enumerate(known)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    result = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_dashboard_is_what_the_script_writes() -> None:
    assert json.loads(DASHBOARD.read_text()) == dashboard(), "python -m build_scripts.grafana_dashboard"


def test_every_figure_that_is_counted_is_shown_by_a_model() -> None:
    shown = {name for model in ("preprocessing", "vit") for name, _ in of_model(model)}
    assert shown == METRICS.keys()


@pytest.mark.server
def test_every_metric_of_dashboard_and_alerts_exists_on_the_real_server(server: RunningServer, media_dir: Path) -> None:
    with client(server.adapter_url) as http:
        answer(http, video_part(media_dir / "v0.mp4", num_frames=4), text_part("What happens?"), max_tokens=2)
    pages = [httpx2.get(url, trust_env=False).text for url in (f"{server.adapter_url}/metrics", server.metrics_url)]
    there = {match[0] for page in pages for match in re.finditer(r"^[a-z_]+", page, re.MULTILINE)}
    named = {name for expression in expressions() for name in _METRIC.findall(expression)}
    assert len(named) > 15
    assert named - there - ON_GPUS == set()


@pytest.mark.server
def test_the_api_tells_the_runs_health(server: RunningServer) -> None:
    page = httpx2.get(f"{server.adapter_url}/metrics", trust_env=False).text
    assert "\ninternvideo_serving 1.0\n" in page
    assert re.search(r'^internvideo_deaths_total\{name="vit"\} \d', page, re.MULTILINE)
