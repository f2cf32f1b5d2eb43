"""A run: its directory, its mark, and the keeper process that starts and ends its programs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from . import _keeper
from ._errors import LaunchError
from ._progress import Progress

STOP_TIMEOUT_S = 45.0  # every grace of the keeper together, and some more


@dataclass(frozen=True)
class ProgramSpec:
    """A program of the run.

    Args:
        name: For messages.
        argv: The command line.
        env: The whole environment; the run's mark is added.
        log: File that takes stdout and stderr; None shows them on the launcher's stderr.
        grace_s: Seconds from SIGTERM to SIGKILL.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path | None
    grace_s: float


@dataclass(frozen=True)
class Ended:
    """What ended by itself: ``code`` is its exit code, or minus the signal that ended it."""

    name: str
    code: int
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.name} could not be started: {self.reason}"
        return f"{self.name} {f'was ended by signal {-self.code}' if self.code < 0 else f'ended with exit code {self.code}'}"


class Run:
    """The identity of one run and its private directory, which is removed at the end (context manager).

    The directory carries a lock that the launcher and its keeper hold. Where both were killed at once, the next run finds the
    directory unlocked and ends what is left.
    """

    def __init__(self) -> None:
        _sweep()
        self.id = secrets.token_hex(4)
        self.since = time.time()
        self.directory = _runs_root() / f"{_NAME}{self.id}"
        hidden = Path(tempfile.mkdtemp(prefix=f".{_NAME}", dir=_runs_root()))
        self._lock = os.open(hidden / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        hidden.rename(self.directory)  # only now can a sweep see it: locked

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)

    def keep(self, programs: Sequence[ProgramSpec]) -> Keeper:
        """Start programs under a keeper; when one ends, the keeper ends the others."""
        return Keeper(self, programs, self._lock)

    def complete(self, program: ProgramSpec, progress: Progress) -> None:
        """Run one program to its end.

        Raises:
            LaunchError: It failed; the message has the end of its log.
            InterruptedStartError: The start was given up.
        """
        keeper = self.keep([program])
        try:
            while (ended := keeper.wait(0.2)) is None:
                progress.check()
        finally:
            keeper.stop()
        if ended.code != 0:
            raise LaunchError(f"{ended}{tail(program.log)}")


class Keeper:
    """The launcher's side of a keeper process (``_keeper.py``)."""

    def __init__(self, run: Run, programs: Sequence[ProgramSpec], lock: int) -> None:
        self._run = run
        self._stopped = False
        self._ended: Ended | None = None
        self.process = subprocess.Popen(
            # Isolated and without site: the keeper needs the standard library alone.
            [sys.executable, "-I", "-S", _keeper.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C reaches the launcher only, which stops in order
            pass_fds=[lock],
        )
        spec = {
            "run_id": run.id,
            "since": run.since,
            "parent": os.getpid(),
            "state_directory": str(run.directory),
            "programs": [
                {
                    "name": program.name,
                    "argv": list(program.argv),
                    "env": {**program.env, _keeper.RUN_MARK: run.id},
                    "log": str(program.log) if program.log else None,
                    "grace_s": program.grace_s,
                }
                for program in programs
            ],
        }
        if self.process.stdin is None:  # for the type checker: PIPE was asked for
            raise LaunchError("the keeper has no stdin")
        with contextlib.suppress(BrokenPipeError):  # it died at once: poll() tells
            self.process.stdin.write(json.dumps(spec).encode() + b"\n")
            self.process.stdin.flush()

    def poll(self) -> Ended | None:
        """What ended the run (then everything of it is gone), None while it goes on or when it was stopped."""
        if self.process.poll() is not None:
            self._finish()
        return self._ended

    def wait(self, timeout: float | None = None) -> Ended | None:
        """As ``poll``, after at most ``timeout`` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        return self.poll()

    def stop(self) -> None:
        """End the programs, in reverse order of their start, and everything else of the run. Idempotent."""
        if self._stopped:
            return
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._finish()

    def _finish(self) -> None:
        """Read the ended keeper's result; do its work where it was killed."""
        if self._stopped:
            return
        self._stopped = True
        output = self.process.stdout.read() if self.process.stdout is not None else b""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self.process.returncode != 0:
            _keeper.remove_remains(self._run.id, self._run.since)
            self._ended = Ended("the launcher's keeper", self.process.returncode)
        elif result := json.loads(output):
            self._ended = Ended(**result)


def tail(log: Path | None, lines: int = 40) -> str:
    """The last lines of a log for an error message, and tritonserver's errors before them; "" where there is none."""
    if log is None or not log.exists():
        return ""
    whole = log.read_text(errors="replace").splitlines()
    errors = [line for line in whole[:-lines] if _ERROR_LINE.match(line)][-10:]
    return "\n".join([f"\nLast lines of {log.name}:", *errors, *whole[-lines:]])


_ERROR_LINE = re.compile(r"E\d{4} |terminate called|  what\(\):")


_NAME = f"internvideo-{os.getuid()}-"


def _runs_root() -> Path:
    return Path(tempfile.gettempdir())


def _sweep() -> None:
    """End what runs left behind whose launcher and keeper were both killed."""
    for directory in _runs_root().glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):  # another launcher sweeps it, or it is locked: alive
            if directory.is_symlink() or directory.stat().st_uid != os.getuid():
                continue
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _keeper.remove_remains(directory.name.removeprefix(_NAME), (directory / "lock").stat().st_mtime)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)
