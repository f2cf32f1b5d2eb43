"""The table of ``internvideo status``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rich.markup import escape
from rich.table import Table

_COLOURS = {"serving": "green", "failed": "red"}


def table_of(runs: Sequence[Any]) -> Table:
    """One block a server; ``runs``: as ``internvideo_server.launch.statuses`` gives them."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for run in runs:
        colour = _COLOURS.get(run.status, "yellow")
        record = run.record
        rows = {
            "status": f"[{colour}]{run.status}[/], up {timedelta(seconds=round(run.uptime_s))}",
            "dead at the moment": escape(", ".join(run.down)),
            "died so far": escape(", ".join(f"{name} {count} x" for name, count in run.deaths.items())),
            "requests": "" if run.requests is None else f"{run.requests} ended, {run.at_work} under way",
            "models": escape(", ".join(record.models)),
            "API": escape(record.urls.get("openai", "")),
            "Triton": escape(", ".join(record.urls[each] for each in ("grpc", "http", "metrics") if each in record.urls)),
            "processes": f"{record.pid} (launcher), {', '.join(map(str, run.processes))}".rstrip(", "),
            "run directory": escape(record.directory or ""),
        }
        table.add_row(f"[bold]{escape(record.name)}[/]", "")
        for title, text in rows.items():
            if text:
                table.add_row(f"  {title}", text)
    return table
