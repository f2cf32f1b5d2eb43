"""What was aimed at, each beside the figure of a result that says whether it was reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Read = Callable[[str], dict[str, Any] | None]  # a result by its name


@dataclass(frozen=True)
class Figure:
    """A cell of a result: the column of the row that has these values."""

    result: str
    column: str
    row: dict[str, Any]

    def value(self, read: Read) -> float | None:
        """None where it was not measured."""
        result = read(self.result)
        rows: list[dict[str, Any]] = result["rows"] if result else []
        found = next((row for row in rows if self.row.items() <= row.items()), {})
        value = found.get(self.column)
        return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        what: What is measured.
        unit: Behind each number.
        wanted: The number that was set.
        figure: What was measured.
        over: A figure that it is divided by.
        at_least: Whether more is better.
        scale: From the figure's unit to this one's.
    """

    what: str
    unit: str
    wanted: float
    figure: Figure
    over: Figure | None = None
    at_least: bool = False
    scale: float = 1.0

    def reached(self, read: Read) -> float | None:
        """In its unit; None where it was not measured."""
        value, over = self.figure.value(read), self.over.value(read) if self.over else 1.0
        return value * self.scale / over if value is not None and over else None

    def verdict(self, read: Read) -> str:
        """Reached, missed or not measured. A number counts as it is shown."""
        value = self.reached(read)
        if value is None:
            return "not measured"
        shown = float(f"{value:.3g}")
        return "reached" if (shown >= self.wanted if self.at_least else shown <= self.wanted) else "missed"


def chain(column: str, result: str = "end_to_end_vllm", **row: Any) -> Figure:
    """Of the whole chain: one stream about 80 frames without caches, unless the row says otherwise."""
    return Figure(result, column, {"method": "no caches", "frames": 80, "streams": 1, **row})


def _tower(method: str) -> Figure:
    return Figure("vision", "ms", {"frames": 80, "method": method})


SIXTEEN = chain("videos/s", streams=16)
TARGETS = [
    Target("first token, 80 frames", "s", 0.20, chain("first token s")),
    Target("first token, 512 frames", "s", 1.1, chain("first token s", "long", frames=512)),
    Target("first token, 1,024 frames", "s", 2.2, chain("first token s", "long", frames=1024)),
    Target("first token of a second turn", "ms", 30, chain("second turn s", method="server"), scale=1e3),
    Target("16 streams, bfloat16", "videos/s", 5.5, SIXTEEN, at_least=True),
    Target("16 streams, FP8", "videos/s", 7, chain("videos/s", "end_to_end_vllm_fp8", streams=16), at_least=True),
    Target("vision tower, 80 frames, bfloat16", "ms", 98, _tower("server")),
    Target("the same, FP8", "ms", 80, _tower("server, FP8")),
    Target(
        "its error, mean 1 - cosine of a token", "", 1e-3, Figure("vision_accuracy", "mean_token_off", {"model": "server, FP8"})
    ),
    Target(
        "80 frames to the tower's GPU",
        "ms",
        10,
        Figure("handoff", "on device ms", {"frames": 80, "way": "frames: descriptor, read, 4 threads"}),
    ),
    Target("two GPUs, tower on the second", "videos/s", 9, chain("videos/s", "two_gpus_tower", streams=16), at_least=True),
    Target("two replicas, times one", "", 1.9, chain("videos/s", "two_gpus_replicas", streams=32), SIXTEEN, at_least=True),
    Target(
        "longest gap of text streams beside 1,024 frames", "ms", 100, Figure("neighbours", "longest gap ms", {"frames": 1024})
    ),
    Target("first token of 16 frames beside them", "s", 0.5, Figure("neighbours", "short, slowest s", {"frames": 1024})),
    Target("the adapter's CPU a token, 64 streams", "ms", 0.1, Figure("adapter", "CPU a token, ms", {"streams": 64})),
    Target("start, nothing to make, 2 cores", "s", 3, Figure("cpu", "start warm s", {"model": "demo"})),
    Target(
        "decode and resize, times the old method, 2 cores",
        "",
        2.5,
        Figure("decode", "times as fast", {"method": "server"}),
        at_least=True,
    ),
    Target("the same, 16 cores", "", 6, Figure("decode_16_cores", "times as fast", {"method": "server"}), at_least=True),
]


def rows(read: Read, which: list[Target] = TARGETS) -> list[dict[str, str]]:
    """The table's."""
    return [
        {
            "what": each.what,
            "target": f"{'>=' if each.at_least else '<='} {each.wanted:g} {each.unit}".strip(),
            "measured": "-" if (value := each.reached(read)) is None else f"{value:.3g} {each.unit}".strip(),
            "": each.verdict(read),
        }
        for each in which
    ]
