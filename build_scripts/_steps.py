"""Steps that make a directory each: skipped when current, written beside and then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_RECORD = "step.json"  # in a step's output: what it was made of


class StepError(RuntimeError):
    """A step's program failed or is not there."""


def beside(output: Path) -> Path:
    """Where a step writes before ``output`` exists."""
    return output.with_name(f"{output.name}.part")


@contextmanager
def replacing(output: Path, part: Path | None = None) -> Iterator[Path]:
    """A new directory to write to, which then takes the place of ``output``; if the block fails, it is gone.

    Args:
        output: What is to be there afterwards, whole.
        part: The new directory, on the same file system; by default a name of this process's own beside ``output``.
    """
    part = part or output.with_name(f".{output.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)  # what an interrupted run left
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(output, ignore_errors=True)
        part.rename(output)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@dataclass(frozen=True)
class Step:
    """Commands that together make one directory, or only check something.

    Args:
        title: For people.
        commands: Run in order; they write to ``beside(output)``.
        output: What exists afterwards; None for a step that is to run every time and renames what it writes itself.
        inputs: Files whose content decides whether the output is current.
    """

    title: str
    commands: Sequence[Sequence[str]]
    output: Path | None = None
    inputs: Sequence[Path] = ()

    def lines(self) -> list[str]:
        """The commands as a shell takes them, the renaming included."""
        lines = [shlex.join(command) for command in self.commands]
        if self.output is not None:
            lines.append(shlex.join(["mv", "-T", str(beside(self.output)), str(self.output)]))
        return lines

    def run(self, report: Callable[[str], None], context: dict[str, str], force: bool = False) -> None:
        """Run the commands unless the output is current.

        Args:
            report: Takes a line for people.
            context: What else the result depends on (versions, the GPU).
            force: Make it anew anyhow.

        Raises:
            StepError: A command failed; the output is as it was, or absent.
        """
        if self.output is None:
            report(self.title)
            self._execute(report)
            return
        record = json.dumps({"identity": self._identity(context), **context}, indent=2) + "\n"
        made = self.output / _RECORD
        if not force and made.is_file() and made.read_text() == record:
            report(f"{self.title}: current, skipped")
            return
        report(self.title)
        with replacing(self.output, beside(self.output)) as part:
            self._execute(report)
            (part / _RECORD).write_text(record)

    def _identity(self, context: dict[str, str]) -> str:
        digest = hashlib.sha256(json.dumps([[list(command) for command in self.commands], context]).encode())
        for file in self.inputs:
            digest.update(file.read_bytes())
        return digest.hexdigest()[:32]

    def _execute(self, report: Callable[[str], None]) -> None:
        for command in self.commands:
            report(f"  $ {shlex.join(command)}")
            try:
                code = subprocess.run(command, check=False).returncode
            except FileNotFoundError as error:
                raise StepError(f"{command[0]} is not installed: run this inside the container (docs/production.md)") from error
            if code:
                raise StepError(f"{self.title}: {Path(command[0]).name} ended with exit code {code}; its output above says why")
