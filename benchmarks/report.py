"""What every benchmark writes: the machine, the versions, the commit, and a table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def surroundings(*packages: str) -> dict[str, Any]:
    """Hardware, versions and commit of this run."""
    models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "commit": _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "--untracked-files=no") else ""),
    }


def write(name: str, machine: dict[str, Any], rows: list[dict[str, Any]], command: str, notes: str) -> list[Path]:
    """Write ``results/NAME.json`` and ``results/NAME.md``; where the name is an absolute path, there."""
    base = RESULTS / name
    base.parent.mkdir(parents=True, exist_ok=True)
    files = [base.with_name(f"{base.name}.{kind}") for kind in ("json", "md")]
    files[0].write_text(json.dumps({"command": command, "machine": machine, "rows": rows}, indent=1) + "\n")
    packages = ", ".join(f"{package} {number}" for package, number in machine["packages"].items())
    gpu = f"{machine['gpu']}; " if machine["gpu"] else ""
    where = f"{gpu}{machine['cores']} cores ({machine['cpu']}), load {machine['load']:.1f} at the start"
    about = f"{where}, Python {machine['python']}, {packages}. {notes}"
    lines = [f"`{command}`, commit {machine['commit'][:12]}", "", about, "", *table(rows), ""]
    files[1].write_text("\n".join(lines))
    return files


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


def _gpu() -> str:
    """Names of the GPUs and the driver, or nothing."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ", ".join(f"{lines.count(line)} x {line.replace(',', ' driver')}" for line in dict.fromkeys(lines))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False).stdout.strip()
