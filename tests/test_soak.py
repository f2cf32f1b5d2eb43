"""Three minutes of the soak: load and kills; nothing wrong, nothing lost in silence, every gauge back to zero."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.soak import Findings, report, soak
from internvideo_server.launch import start
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS
from tests.conftest import ROOT


@pytest.mark.ci
@pytest.mark.server
def test_three_minutes_of_load_and_kills(tmp_path: Path) -> None:
    settings = ServeSettings(
        device="cpu",
        allowed_local_media_path=(ROOT / "examples",),
        run_directory=tmp_path / "run",
        max_restarts=1000,
        max_queue_size=256,
        **FREE_PORTS,
    )
    with start(settings) as server:
        findings = asyncio.run(soak(server, minutes=3, clients=16, kill_every_s=30, seed=2))
    print(report(findings, 3, 16, "test"))  # noqa: T201 - shown where it fails
    assert findings.wrong == []
    assert findings.silent == []
    assert len(findings.kills) >= 4
    assert findings.outcomes["stream", "right"] > 10
    assert findings.gauges
    assert not any(findings.gauges.values())


def test_growth_compares_the_end_with_the_warm_level() -> None:
    findings = Findings()
    findings.samples = [(float(i), 100.0 + (i >= 30), 10, 5, 2.0) for i in range(40)]
    assert findings.growth() == pytest.approx({"memory": 0.01, "descriptors": 0, "threads": 0, "shared memory": 0})
    assert Findings().growth() == {}
