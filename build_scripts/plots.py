"""The plots of the docs, from ``benchmarks/results``: on white, so that they can be read on dark pages too."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, read

PICTURES = ROOT / "docs" / "pictures"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")  # told apart by those who see colours otherwise


@dataclass(frozen=True)
class Line:
    """One curve: the column of the rows that have these values, over another column."""

    label: str
    result: str
    x: str
    y: str
    rows: dict[str, Any]

    def points(self) -> list[tuple[float, float]]:
        """None where it was not measured."""
        found = [row for row in (read(self.result) or {"rows": []})["rows"] if self.rows.items() <= row.items()]
        return [(row[self.x], row[self.y]) for row in found if isinstance(row.get(self.y), int | float)]


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    x: str
    y: str
    lines: list[Line]
    x_log: bool = True
    y_log: bool = False


@dataclass(frozen=True)
class Plot:
    """A picture of one or two panels."""

    name: str
    panels: list[Panel] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Where it lies."""
        return PICTURES / f"{self.name}.svg"

    def figures(self) -> list[list[tuple[str, list[tuple[float, float]]]]]:
        """The points of each curve that has some."""
        return [[(line.label, points) for line in panel.lines if (points := line.points())] for panel in self.panels]

    def mark(self) -> str:
        """The comment that says of which figures a picture is."""
        digest = hashlib.sha256(json.dumps(self.figures()).encode()).hexdigest()
        return f"<!-- of {digest[:16]} -->"


def _chain(label: str, result: str, column: str, **row: Any) -> Line:
    return Line(label, result, "streams", column, {"frames": 80, **row})


def _streams(column: str) -> list[Line]:
    off = {"method": "no caches"}
    return [
        _chain("vLLM, bfloat16", "end_to_end_vllm", column, **off),
        _chain("vLLM, FP8", "end_to_end_vllm_fp8", column, **off),
        _chain("embedded", "end_to_end_embedded", column, **off),
        _chain("vLLM's InternVL server", "peer", column),
        _chain("two replicas", "two_gpus_replicas", column),
    ]


def _simulated(column: str) -> list[Line]:
    policies = ("round robin", "consistent", "200 %")
    return [Line(policy, "scale", "replicas", column, {"load": "popular videos", "policy": policy}) for policy in policies]


PLOTS = [
    Plot(
        "figures_chain",
        [
            Panel("streams at once", "videos/s", _streams("videos/s")),
            Panel("streams at once", "first token, median, s", _streams("first token s"), y_log=True),
        ],
    ),
    Plot(
        "figures_tower",
        [
            Panel(
                "frames",
                "vision tower, ms",
                [
                    Line(label, "vision", "frames", "ms", {"method": method})
                    for label, method in (("bfloat16", "server"), ("FP8", "server, FP8"), ("old method", "old method"))
                ],
                y_log=True,
            ),
            Panel(
                "frames",
                "to the tower's GPU, ms",
                [
                    Line(label, "handoff", "frames", "on device ms", {"way": way})
                    for label, way in (("here", "frames: descriptor, read, 4 threads"), ("old method", "frames: old method"))
                ],
                y_log=True,
            ),
        ],
    ),
    Plot(
        "figures_lengths",
        [
            Panel("frames", "first token, s", [Line("bfloat16", "long", "frames", "first token s", {"streams": 1})], y_log=True),
            Panel(
                "frames",
                "most memory, MiB",
                [
                    Line("host", "long", "frames", "host MiB", {"streams": 1}),
                    Line("GPU", "long", "frames", "GPU MiB", {"streams": 1}),
                ],
            ),
        ],
    ),
    Plot(
        "scale",
        [
            Panel("replicas", "share of videos found in the caches", _simulated("found")),
            Panel("replicas", "first token, p99, ms", _simulated("p99 ms"), y_log=True),
        ],
    ),
]


def is_current(plot: Plot) -> bool:
    """Whether the committed picture is of the figures that there are; one without figures is not there."""
    if not any(plot.figures()):
        return not plot.path.exists()
    return plot.path.is_file() and plot.path.read_text().endswith(plot.mark() + "\n")


def draw(plot: Plot) -> None:
    """Draw it anew. Needs matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figures = plot.figures()
    if not any(figures):
        plot.path.unlink(missing_ok=True)
        return
    with matplotlib.rc_context({"svg.hashsalt": plot.name, "font.size": 9}):
        picture = Figure(figsize=(9, 3.2), layout="constrained", facecolor="white")
        axes = picture.subplots(1, len(plot.panels), squeeze=False)[0]
        for panel, curves, place in zip(plot.panels, figures, axes, strict=True):
            for (label, points), colour in zip(curves, COLOURS, strict=False):
                place.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label, color=colour)
            ticks = sorted({x for _, points in curves for x, _ in points})
            place.set(
                xlabel=panel.x,
                ylabel=panel.y,
                xscale="log" if panel.x_log else "linear",
                yscale="log" if panel.y_log else "linear",
            )
            place.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
            place.minorticks_off()
            place.grid(alpha=0.3)
            if panel.y_log:
                place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                place.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            else:
                place.set_ylim(bottom=0)
            place.legend(fontsize=8)
        picture.savefig(plot.path, metadata={"Date": None})
    plot.path.write_text(plot.path.read_text().rstrip() + f"\n{plot.mark()}\n")
