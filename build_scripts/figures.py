"""Write the tables and plots of the docs from ``benchmarks/results``: ``make figures``.

A page has ``<!-- figures: NAME -->`` and ``<!-- /figures -->`` around each table; what is between is made here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from benchmarks import targets
from benchmarks.report import RESULTS, ROOT, page, read, table
from benchmarks.targets import Figure
from build_scripts.plots import PLOTS, draw, is_current

_BLOCK = re.compile(r"(<!-- figures: ([\w ]+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
_BENCH = 'Not measured: `make bench-gpu ARGS="VIDEO --only {}"`'
Rows = list[dict[str, str]]


def cell(result: str, column: str, unit: str = "", scale: float = 1.0, **row: Any) -> str:
    """A figure with its unit; ``-`` where it was not measured."""
    value = Figure(result, column, row).value(read)
    return "-" if value is None else f"{number(value * scale)} {unit}".strip()


def number(value: Any) -> str:
    """Three digits, as in a text: 4.72, 105, 1,220."""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def sources(*names: str) -> str:
    """Where a table's figures come from; the last table of docs/performance.md says more of each."""
    parts = []
    for name in names:
        if result := read(name):
            card = result["machine"]["gpu"].partition(" driver")[0] or f"{result['machine']['cores']} cores"
            parts.append(f"[{name}](../benchmarks/results/{name}.md) ({card})")
    return f"\nFrom {', '.join(parts)}."


def picked(name: str, columns: dict[str, str], keep: Callable[[dict[str, Any]], bool] = lambda row: True) -> str:
    """Some columns of a result under other names; or how to measure it."""
    result = read(name)
    if result is None:
        return _BENCH.format(name)
    rows = [{shown: number(row.get(column, "-")) for column, shown in columns.items()} for row in result["rows"] if keep(row)]
    return "\n".join([*table(rows), sources(name)])


def old_method() -> str:
    """Part by part beside the old system's method."""
    decode = partial(cell, column="s", unit="s")
    rows: Rows = []
    for what, result, video in (
        ("decode and resize a clip of 30 s, 2 cores", "decode", "red-panda.mp4"),
        ("the same, 16 cores", "decode_16_cores", "red-panda.mp4"),
        ("decode and resize 10 minutes of 1080p (GOP 250), 2 cores", "decode_long", "long250.mp4"),
        ("the same, 16 cores", "decode_long_16_cores", "long250.mp4"),
    ):
        old, here = (decode(result, video=video, method=method) for method in ("old method", "server"))
        rows.append({"80 frames": what, "old method": old, "here": f"**{here}**"})
    for what, method in (("vision tower, H200, bfloat16", "server"), ("the same, FP8", "server, FP8")):
        old = cell("vision", "ms", "ms", frames=80, method="old method") if method == "server" else "-"
        rows.append({"80 frames": what, "old method": old, "here": f"**{cell('vision', 'ms', 'ms', frames=80, method=method)}**"})
    ways = ("rows: old method", "rows: GPU region")
    old, here = (cell("handoff", "on device ms", "ms", frames=80, way=way) for way in ways)
    rows.append({"80 frames": "embeddings to the language model's GPU, H200", "old method": old, "here": f"**{here}**"})
    return "\n".join(
        [*table(rows), sources("decode", "decode_16_cores", "decode_long", "decode_long_16_cores", "vision", "handoff")]
    )


def tower() -> str:
    """The vision tower at 80 frames."""
    rows = [
        {
            "": shown,
            "rested": cell("vision", "ms", "ms", frames=80, method=method),
            "one after the other": cell("vision", "ms in a row", "ms", frames=80, method=method),
            "TFLOP/s": cell("vision", "TFLOP/s", frames=80, method=method),
            "mean 1 - cosine of a token": cell("vision_accuracy", "mean_token_off", model=method),
            "of a merged one": cell("vision_accuracy", "mean_merged_off", model=method),
            "merge choices that differ": cell("vision_accuracy", "choices_flipped", "%", 100, model=method),
        }
        for shown, method in (("bfloat16", "server"), ("FP8 (MLPs)", "server, FP8"), ("old method", "old method"))
    ]
    return "\n".join([*table(rows), sources("vision", "vision_accuracy")])


def handoff() -> str:
    """All ways of 80 frames."""
    columns = {"way": "80 frames", "on device ms": "ms", "first ms": "first 16 frames, ms", "MB to host": "MB to the host"}
    return picked("handoff", columns, lambda row: row["frames"] == 80)


def chain() -> str:
    """The whole chain: a row for each deployment, a column for each number of streams."""
    names = {
        "end_to_end_vllm": "vLLM, bfloat16",
        "end_to_end_vllm_without_mps": "the same without MPS",
        "end_to_end_vllm_fp8": "vLLM, language model and tower in FP8",
        "end_to_end_vllm_fp8_without_mps": "the same without MPS",
        "end_to_end_embedded": "embedded engine",
        "end_to_end_old_method": "the old method",
        "peer": "vLLM's own InternVL server, pictures",
        "peer_tuned": "the same, four API processes, FP8",
        "two_gpus_tower": "two GPUs: tower on the second",
        "two_gpus_replicas": "two GPUs: two replicas behind the router",
        "two_gpus_tensor_parallel": "two GPUs: tensor parallel",
    }
    caches = {"no caches": "off", "server": "on", "openai": "on", "old method": "none"}
    rows: Rows = []
    missing: list[str] = []
    for name, shown in names.items():
        result = read(name) or {"rows": []}
        for method in dict.fromkeys(row["method"] for row in result["rows"]):
            find = partial(cell, name, method=method, frames=80)
            label = "old method" if method == "old method" else shown
            rows.append(
                {
                    "80 frames": f"[{label}](../benchmarks/results/{name}.md)",
                    "caches": caches[method],
                    "first token": find("first token s", "s", streams=1),
                    "second turn": find("second turn s", "ms", 1e3, streams=1),
                    **{f"videos/s, {n}": find("videos/s", streams=n) for n in (1, 4, 16, 32, 64)},
                }
            )
        if not result["rows"]:
            missing.append(name)
    return "\n".join([*table(rows), "", f"{_BENCH.format(','.join(missing))}." if missing else ""]).rstrip()


def stages() -> str:
    """Where one stream's first token goes."""
    rows = []
    for name, shown in (("end_to_end_vllm", "bfloat16"), ("end_to_end_vllm_fp8", "FP8")):
        whole, *parts = (
            Figure(name, column, {"method": "no caches", "frames": 80, "streams": 1}).value(read)
            for column in ("first token s", "waiting ms", "decode ms", "vision ms")
        )
        if whole is not None and None not in parts:
            waiting, decode, vision = (part or 0.0 for part in parts)
            rest = number(whole * 1e3 - waiting - vision)  # the tower's time holds the decoder's, but for its start
            row = {"waiting": number(waiting), "decode": number(decode), "decode and tower": number(vision), "the rest": rest}
            rows.append({"ms": shown, "first token": number(whole * 1e3), **row})
    return "\n".join([*table(rows), sources("end_to_end_vllm", "end_to_end_vllm_fp8")])


_CAPS = {"cap_24_gib": "24 GiB, bfloat16", "cap_24_gib_fp8": "24 GiB, FP8", "cap_16_gib_fp8": "16 GiB, FP8, its cache too"}


def lengths(name: str) -> str:
    """What length costs: first token and memory by the number of frames."""
    columns = {"frames": "frames", "streams": "streams", "first token s": "first token, s", "decode ms": "decode, ms"}
    columns |= {"vision ms": "decode and tower, ms", "host MiB": "host, MiB", "GPU MiB": "GPU, MiB"}
    return picked(name, columns)


def caps() -> str:
    """The same with the memory of small cards."""
    return "\n\n".join(f"{title}:\n\n{lengths(name)}" for name, title in _CAPS.items())


def engines() -> str:
    """The engines alone: tokens a second and first token by streams."""
    rows: Rows = []
    for name in ("engine_vllm", "engine_vllm_fp8", "engine_embedded"):
        result = read(name)
        for method in dict.fromkeys(row["method"] for row in result["rows"]) if result else ():
            find = partial(cell, name, method=method, turn="first")
            rows.append(
                {
                    "": f"[{name}](../benchmarks/results/{name}.md), {method}",
                    **{f"first token, {n}": find("first token s", "s", streams=n) for n in (1, 16, 64)},
                    **{f"tokens/s, {n}": find("tokens/s", streams=n) for n in (1, 16, 64)},
                }
            )
    return "\n".join(table(rows)) if rows else _BENCH.format("engine_vllm,engine_vllm_fp8,engine_embedded")


def neighbours() -> str:
    """What a long video costs the others."""
    result = read("neighbours")
    return picked("neighbours", {name: name for name in result["rows"][0]}) if result else _BENCH.format("neighbours")


def whole(name: str) -> str:
    """All of a result."""
    result = read(name)
    return picked(name, {column: column for column in result["rows"][0]}) if result else "Not measured."


def cpu() -> str:
    """Two CPU cores."""
    result = read("cpu")
    return picked("cpu", {name: name for name in result["rows"][0]}) if result else "Not measured."


def simulated() -> str:
    """What routing is worth, a few rows."""
    shown = [("popular videos", 3), ("popular videos", 10), ("popular videos", 100), ("popular videos", 1000)]
    shown.append(("every video is private, 2 GiB of embeddings", 10))
    result = read("scale") or {"rows": []}
    rows = [
        {
            "load": row["load"],
            "replicas": number(row["replicas"]),
            "policy": row["policy"],
            "first token p50 / p99, ms": f"{number(row['p50 ms'])} / {number(row['p99 ms'])}",
            "found in the caches": f"{100 * row['found']:.0f} % ({100 * row['found, later questions']:.0f} % of later questions)",
            "GPU ms an answer": number(row["GPU ms an answer"]),
        }
        for row in result["rows"]
        if (row["load"], row["replicas"]) in shown and row["policy"] in ("round robin", "consistent", "200 %")
    ]
    return "\n".join([*table(rows), sources("scale")])


def provenance() -> str:
    """Every result: commit, date, machine, versions, command."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        result = read(path.stem)
        if result is None:
            continue
        machine = result["machine"]
        versions = ", ".join(f"{name} {value}" for name, value in machine["packages"].items())
        rows.append(
            {
                "result": f"[{path.stem}](../benchmarks/results/{path.stem}.md)",
                "commit": machine["commit"][:12] + "+" * machine["commit"].endswith("+"),
                "date": result["date"],
                "card": machine["gpu"] or "-",
                "cores": str(machine["cores"]),
                "load": number(machine["load"]),
                "versions": f"Python {machine['python']}, {versions}",
                "command": f"`{result['command']}`",
            }
        )
    return "\n".join(table(rows))


def front(words: dict[str, str]) -> str:
    """README's table; ``words``: its language."""
    past, fast, small = "end_to_end_old_method", "end_to_end_vllm", "end_to_end_vllm_fp8"

    def chains(what: str, column: str, unit: str, method: str = "no caches", scale: float = 1.0, streams: int = 1) -> list[str]:
        old = cell(past, column, unit, scale, method="old method") if streams == 1 else "-"
        wanted: dict[str, Any] = {"method": method, "frames": 80, "streams": streams}
        return [what, old, *(cell(name, column, unit, scale, **wanted) for name in (fast, small))]

    lengths = [[words["long"].format(number(n)), "-", cell("long", "first token s", "s", frames=n), "-"] for n in (512, 1024)]
    tower = (cell("vision", "ms", "ms", frames=80, method=method) for method in ("old method", "server", "server, FP8"))
    decode = (cell("decode_16_cores", "s", "s", method=method) for method in ("old method", "server"))
    rows = [
        chains(words["first"], "first token s", "s"),
        *lengths,
        chains(words["second"], "second turn s", "ms", "server", 1e3),
        *(chains(words["rate"].format(n), "videos/s", "", streams=n) for n in (1, 16, 64)),
        [words["tower"], *tower],
        [words["decode"], *decode, "-"],
    ]
    titles = ["", words["old"], words["bf16"], words["fp8"]]
    return "\n".join(table([dict(zip(titles, row, strict=True)) for row in rows]))


ENGLISH = {
    "first": "first token over HTTP",
    "long": "the same, {} frames",
    "second": "second turn about 80 frames, caches on",
    "rate": "videos/s, streams at once: {}",
    "tower": "vision tower",
    "decode": "decode and resize, 16 cores",
    "old": "old method",
    "bf16": "here, bfloat16",
    "fp8": "here, FP8",
}
CHINESE = {
    "first": "经 HTTP 的首个词元",
    "long": "同上，{} 帧",
    "second": "80 帧的第二轮，启用缓存",
    "rate": "每秒视频数，并发 {} 路",
    "tower": "视觉塔",
    "decode": "解码与缩放，16 核",
    "old": "旧做法",
    "bf16": "本项目，bfloat16",
    "fp8": "本项目，FP8",
}
BLOCKS: dict[str, Callable[[], str]] = {
    "targets": lambda: "\n".join(table(targets.rows(read))),
    "old method": old_method,
    "tower": tower,
    "handoff": handoff,
    "chain": chain,
    "stages": stages,
    "lengths": lambda: lengths("long"),
    "caps": caps,
    "engines": engines,
    "neighbours": neighbours,
    "adapter": lambda: whole("adapter"),
    "page": lambda: whole("page"),
    "cpu": cpu,
    "simulated": simulated,
    "results": provenance,
    "front": lambda: front(ENGLISH),
}
PAGES = [ROOT / name for name in ("README.md", "README.zh.md", "docs/performance.md", "docs/scale.md")]


def renewed(path: Path) -> str:
    """A page with its tables made anew.

    Raises:
        KeyError: It names a table that is not made here.
    """
    blocks = BLOCKS | ({"front": lambda: front(CHINESE)} if ".zh." in path.name else {})
    return _BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]]()}\n{found[3]}", path.read_text())


def main() -> None:
    """Write the pages of the results, the tables of the docs, and the plots whose figures have changed."""
    console = Console(highlight=False)
    results = {path.with_suffix(".md"): page(json.loads(path.read_text())) for path in RESULTS.glob("*.json")}
    for path, new in (results | {path: renewed(path) for path in PAGES}).items():
        if not path.is_file() or path.read_text() != new:
            path.write_text(new)
            console.print(f"wrote {path.relative_to(ROOT)}")
    for plot in PLOTS:
        if not is_current(plot):
            draw(plot)
            console.print(f"drew {plot.path.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
