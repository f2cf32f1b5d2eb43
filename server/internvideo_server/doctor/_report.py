"""What the doctor found, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rich.markup import escape


class Status(StrEnum):
    """``WARNING``: it will run, but not as well or not in every case. ``SKIPPED``: nothing to look at."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


_COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "red", Status.SKIPPED: "dim"}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Args:
        name: What was looked at.
        status: How it is.
        message: What was found.
        fix: What to do, where something is to be done.
    """

    name: str
    status: Status
    message: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """All checks, in the order in which they matter."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings leave it true."""
        return all(check.status is not Status.FAILED for check in self.checks)

    def to_document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "ok": self.ok,
            "checks": [
                {"name": check.name, "status": check.status.value, "message": check.message, "fix": check.fix}
                for check in self.checks
            ],
        }

    def to_markup(self) -> str:
        """For a terminal, in rich's markup: a line a check, and one below it for what to do."""
        width = max((len(check.name) for check in self.checks), default=0)
        lines: list[str] = []
        for check in self.checks:
            colour = _COLOURS[check.status]
            lines.append(f"[{colour}]{check.status.value:8}[/] {check.name:{width}}  {escape(check.message)}")
            if check.fix:
                lines.append(f"{'':{width + 11}}[bold]-> [/]{escape(check.fix)}")
        counts = {status: sum(check.status is status for check in self.checks) for status in Status}
        lines += ["", ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)]
        return "\n".join(lines)


def ok(name: str, message: str) -> Check:
    return Check(name, Status.OK, message)


def failed(name: str, message: str, fix: str) -> Check:
    return Check(name, Status.FAILED, message, fix)


def warning(name: str, message: str, fix: str) -> Check:
    return Check(name, Status.WARNING, message, fix)


def skipped(name: str, message: str) -> Check:
    return Check(name, Status.SKIPPED, message)
