"""What every benchmark writes: one shape of result, with where it comes from, as JSON and as a page that is made from it.

A result is ``{"command", "date", "machine", "notes", "rows"}``; ``machine`` has the commit, hardware, driver and versions.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COMMIT_VARIABLE = "BENCH_COMMIT"  # of a copy of the project that has no history
_NOT_MEASURED = (":!benchmarks/results", ":!docs", ":!*.md")  # what changes no figure
_OWN_OPTIONS = ("--name", "--out", "--work")  # where things go says nothing


def surroundings(*packages: str) -> dict[str, Any]:
    """Hardware, versions and commit of this run."""
    models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpus(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "commit": commit(),
    }


def commit() -> str:
    """The last commit that changed more than results and texts; with ``+`` where the files are others."""
    if said := os.environ.get(COMMIT_VARIABLE):
        return said
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *_NOT_MEASURED)
    return _git("log", "-1", "--format=%H", "--", ".", *_NOT_MEASURED) + ("+" if changed else "")


def command_line(arguments: Sequence[str] | None = None) -> str:
    """How this program was started, without the folders of its files; ``arguments``: as of ``sys.argv``."""
    program, *words = sys.argv if arguments is None else arguments
    path = Path(program).resolve()
    shown = ["python", str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name]
    rest = iter(words)
    for word in rest:
        if word in _OWN_OPTIONS:
            next(rest, None)
        else:
            shown.append(Path(word).name if word.startswith("/") else word)
    return shlex.join(shown)


def write(name: str, machine: dict[str, Any], rows: list[dict[str, Any]], notes: str) -> list[Path]:
    """Write ``results/NAME.json`` and ``results/NAME.md``; where the name is an absolute path, there."""
    date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    result = {"command": command_line(), "date": date, "machine": machine, "notes": notes, "rows": rows}
    base = RESULTS / name
    base.parent.mkdir(parents=True, exist_ok=True)
    files = [base.with_name(f"{base.name}.{kind}") for kind in ("json", "md")]
    files[0].write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    files[1].write_text(page(result))
    return files


def read(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """A result; None where it was not measured."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def page(result: dict[str, Any]) -> str:
    """A result as Markdown."""
    lines = [f"`{result['command']}`", "", f"{provenance(result)}. {result['notes']}", "", *table(result["rows"]), ""]
    return "\n".join(lines)


def provenance(result: dict[str, Any]) -> str:
    """Where a result comes from, in a line."""
    machine = result["machine"]
    gpu = f"{machine['gpu']}; " if machine["gpu"] else ""
    where = f"{gpu}{machine['cores']} cores ({machine['cpu']}), load {machine['load']:.1f} at the start"
    versions = "".join(f", {package} {number}" for package, number in machine["packages"].items())
    changed = ", with changes" * machine["commit"].endswith("+")
    return f"Commit {machine['commit'][:12]}{changed}, {result['date']}; {where}, Python {machine['python']}{versions}"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of equal keys as lines of Markdown."""
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *cells)]


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def gpus() -> str:
    """Names of the GPUs and the driver, or nothing."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ", ".join(f"{lines.count(line)} x {line.replace(',', ' driver')}" for line in dict.fromkeys(lines))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False).stdout.strip()
