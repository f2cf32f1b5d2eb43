"""What the docs say was measured is what the results say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import RESULTS, page, read
from benchmarks.targets import TARGETS, Figure, Target
from build_scripts.figures import PAGES, cell, number, renewed
from build_scripts.plots import PLOTS, is_current
from tests.conftest import ROOT

NAMES = sorted(path.stem for path in RESULTS.glob("*.json"))
_MAKE = "make figures"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_tables_are_those_of_the_results(path: Path) -> None:
    text = path.read_text()
    assert "<!-- figures: " in text
    assert renewed(path) == text, _MAKE


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_a_plot_is_of_the_figures_that_there_are(plot: Any) -> None:
    assert is_current(plot), _MAKE
    shown = f"](pictures/{plot.name}.svg)" in "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert shown == plot.path.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_result_says_where_it_comes_from_and_its_page_is_made_from_it(name: str) -> None:
    result = read(name)
    assert result and result["rows"] and result["notes"] and result["date"]
    assert re.match(r"python (-m benchmarks\.|benchmarks/)\w+", result["command"])
    assert re.fullmatch(r"[0-9a-f]{40}\+?", result["machine"]["commit"])
    assert {"cpu", "cores", "gpu", "load", "python", "packages"} <= result["machine"].keys()
    assert (RESULTS / f"{name}.md").read_text() == page(result)


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_shown_somewhere(name: str) -> None:
    """Beside the list of all of them."""
    pages = [
        re.sub(r"<!-- figures: results -->.*?<!-- /figures -->", "", p.read_text(), flags=re.DOTALL)
        for p in (ROOT / "docs").glob("*.md")
    ]
    assert any(f"benchmarks/results/{name}.md" in text for text in pages), "old results go"


def test_a_figure_that_was_not_measured_is_none() -> None:
    assert cell("vision", "ms", "ms", frames=80, method="server") != "-"
    assert cell("vision", "ms", "ms", frames=81, method="server") == cell("no such result", "ms") == "-"
    assert [number(value) for value in (0.59512, 104.6, 1219.9, "-")] == ["0.595", "105", "1,220", "-"]


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [
        (0.2, False, "reached"),
        (0.2004, False, "reached"),
        (0.201, False, "missed"),
        (0.201, True, "reached"),
        ("-", True, "not measured"),
    ],
)
def test_a_target_is_reached_missed_or_not_measured(value: float | str, at_least: bool, verdict: str) -> None:
    target = Target("x", "s", 0.2, Figure("r", "s", {"streams": 1}), at_least=at_least)
    rows = [{"streams": 2, "s": 9.0}, {"streams": 1, "s": value}]
    assert target.verdict(lambda name: {"rows": rows} if name == "r" else None) == verdict
    assert target.verdict(lambda name: None) == "not measured"


def test_a_ratio_needs_both_figures() -> None:
    target = next(each for each in TARGETS if each.over)
    results = {
        "two_gpus_replicas": {"rows": [{"method": "no caches", "frames": 80, "streams": 32, "videos/s": 9.5}]},
        "end_to_end_vllm": {"rows": [{"method": "no caches", "frames": 80, "streams": 16, "videos/s": 5.0}]},
    }
    assert target.reached(results.get) == pytest.approx(1.9)
    assert target.reached({"two_gpus_replicas": results["two_gpus_replicas"]}.get) is None
