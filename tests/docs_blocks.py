"""The code blocks of README and docs, with what the comment before each says about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(
    r"^(?:<!-- (?P<why>needs|tested): (?P<what>[^\n]+?) -->\n)?```(?P<kind>bash|python|sh|console)\n(?P<text>.*?)^```",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        why: ``needs`` (something that no test has), ``tested`` (by another test), or None: run as it stands.
        what: What it needs, or the test's file.
    """

    page: Path
    line: int
    kind: str
    text: str
    why: str | None
    what: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    def commands(self) -> list[str]:
        """A shell block's lines, those that go on joined."""
        joined = re.sub(r"\\\n\s*", " ", self.text)
        return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def blocks() -> Iterator[Block]:
    """All shell and Python blocks."""
    for page in PAGES:
        text = page.read_text()
        for found in _BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield Block(page, line, found["kind"], found["text"], found["why"], found["what"])
