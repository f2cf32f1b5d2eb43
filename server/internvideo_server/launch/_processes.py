"""A run: its directory, its mark, and the supervisor process that starts and ends its programs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import _supervisor
from ._errors import LaunchError
from ._progress import Progress

SUPERVISOR = "the launcher's supervisor"
STOP_TIMEOUT_S = 45.0  # every grace of the supervisor together, and some more


@dataclass(frozen=True)
class ProgramSpec:
    """A program of the run.

    Args:
        name: For messages.
        argv: The command line.
        env: The whole environment; the run's mark is added.
        log: File that takes stdout and stderr; None shows them on the launcher's stderr.
        grace_s: Seconds from the first signal to SIGKILL.
        stop_signal: What ends it without delay.
        hidden: A secret among its arguments: blotted out where other users could read it, once the program has begun to log.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path | None
    grace_s: float
    hidden: str = ""
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass(frozen=True)
class Ended:
    """A program that ended: ``code`` is its exit code, or minus the signal that ended it."""

    name: str
    code: int
    reason: str = ""
    out_of_memory: bool = False

    def __str__(self) -> str:
        if self.reason:
            return f"{self.name} could not be started: {self.reason}"
        return f"{self.name} {how_it_ended(self.code, self.out_of_memory)}"


@dataclass(frozen=True)
class StubEnded:
    """The process of a Python model that ended; ``code`` as above, None where nobody could read it."""

    model: str
    pid: int
    code: int | None
    out_of_memory: bool = False

    def __str__(self) -> str:
        return f"the process of model {self.model} ({self.pid}) {how_it_ended(self.code, self.out_of_memory)}"


def how_it_ended(code: int | None, out_of_memory: bool) -> str:
    """In words."""
    if code is None:
        return "ended"
    if code >= 0:
        return f"ended with exit code {code}"
    memory = ": the kernel ran out of memory" if out_of_memory else ""
    return f"was ended by signal {-code} ({signal.Signals(-code).name}){memory}"


class Run:
    """The identity of one run and its private directory, which is removed at the end (context manager).

    The directory carries a lock that the launcher and its supervisor hold. Where both were killed at once, the next run finds the
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

    def supervise(self, programs: Sequence[ProgramSpec]) -> Supervisor:
        """Start programs under a supervisor."""
        return Supervisor(self, programs, self._lock)

    def complete(self, program: ProgramSpec, progress: Progress) -> None:
        """Run one program to its end.

        Raises:
            LaunchError: It failed; the message has the end of its log.
            InterruptedStartError: The start was given up.
        """
        supervisor = self.supervise([program])
        try:
            while not isinstance(ended := supervisor.wait(0.2), Ended):
                progress.check()
        finally:
            supervisor.stop()
        if ended.code != 0:
            raise LaunchError(f"{ended}{tail(program.log)}")


class Supervisor:
    """The launcher's side of the supervisor process (``_supervisor.py``)."""

    def __init__(self, run: Run, programs: Sequence[ProgramSpec], lock: int) -> None:
        self._run = run
        self._stopped = False
        self._events: queue.SimpleQueue[Ended | StubEnded] = queue.SimpleQueue()
        self._writing = threading.Lock()
        self._stubs: dict[str, int] = {}
        self.process = subprocess.Popen(
            # Isolated and without site: the supervisor needs the standard library alone.
            [sys.executable, "-I", "-S", _supervisor.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C reaches the launcher only, which stops in order
            pass_fds=[lock],
            # Of a replica's launcher: a dead group's supervisor ends what has its mark, and this one has then work to do.
            env={name: value for name, value in os.environ.items() if name != _supervisor.RUN_MARK},
        )
        self._tell(
            {
                "run_id": run.id,
                "since": run.since,
                "parent": os.getpid(),
                "state_directory": str(run.directory),
                "programs": [
                    {
                        "name": program.name,
                        "argv": list(program.argv),
                        "env": {**program.env, _supervisor.RUN_MARK: run.id},
                        "log": str(program.log) if program.log else None,
                        "grace_s": program.grace_s,
                        "hidden": program.hidden,
                        "stop_signal": int(program.stop_signal),
                    }
                    for program in programs
                ],
            }
        )
        self._reader = threading.Thread(target=self._read, name="supervisor", daemon=True)
        self._reader.start()

    def wait(self, timeout: float) -> Ended | StubEnded | None:
        """The next death, None if there is none within ``timeout`` seconds."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def start(self, name: str) -> None:
        """Start an ended program again."""
        self._tell({"start": name})

    def end(self, name: str) -> None:
        """Ask a program to end (SIGTERM), and end it when its grace is over."""
        self._tell({"end": name})

    def kill(self, name: str) -> None:
        """End a program, or the process of a Python model, at once."""
        self._tell({"kill": name})

    def hang_up(self, name: str) -> None:
        """Let a program read its files again (SIGHUP)."""
        self._tell({"hang_up": name})

    @property
    def stubs(self) -> dict[str, int]:
        """Model -> id of its living process."""
        return dict(self._stubs)

    def stop(self) -> None:
        """End the programs, in reverse order of their start, and everything else of the run. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        if self.process.returncode != 0:  # do its work where it was killed
            _supervisor.remove_remains(self._run.id, self._run.since)

    def _tell(self, document: dict[str, Any]) -> None:
        with self._writing, contextlib.suppress(BrokenPipeError, ValueError):  # it died, or was stopped: wait() tells
            if self.process.stdin is not None:
                self.process.stdin.write(json.dumps(document).encode() + b"\n")
                self.process.stdin.flush()

    def _read(self) -> None:
        """Until its end."""
        if self.process.stdout is None:  # for the type checker: PIPE was asked for
            return
        with self.process.stdout as lines:
            for line in lines:
                fields = json.loads(line)
                kind = fields.pop("event")
                if kind == "ended":
                    self._events.put(Ended(**fields))
                elif kind == "stub_started":
                    self._stubs[fields["model"]] = fields["pid"]
                else:
                    stub = StubEnded(**fields)
                    if self._stubs.get(stub.model) == stub.pid:
                        del self._stubs[stub.model]
                    self._events.put(stub)
        code = self.process.wait()
        if not self._stopped:
            self._events.put(Ended(SUPERVISOR, code))


def tail(log: Path | None, lines: int = 40) -> str:
    """The errors in tritonserver's log, what would not load first; of a log without any, its last lines. "" without a log."""
    if log is None or not log.exists():
        return ""
    whole = log.read_text(errors="replace").splitlines()
    shown = [line for entry in _errors_of(whole)[:_MOST_ERRORS] for line in entry[:_MOST_LINES]]
    return "\n".join(["", *shown]) if shown else last_lines(log, lines)


def last_lines(log: Path, lines: int) -> str:
    """The end of a log; "" where there is none."""
    if not log.exists():
        return ""
    return "\n".join([f"\nLast lines of {log.name}:", *log.read_text(errors="replace").splitlines()[-lines:]])


def _errors_of(lines: Sequence[str]) -> list[list[str]]:
    """Each error of Triton's, or last words of C++, with the lines that belong to it; not the tables, which repeat them."""
    entries: list[list[str]] = []
    inside = False
    for line in lines:
        if entry := _TRITON_ENTRY.match(line):
            if inside := entry["level"] == "E":
                entries.append([entry["text"]])
        elif _LAST_WORDS.match(line):
            entries.append([line])
        elif line.startswith(("|", "+")):
            inside = False
        elif inside and line.strip():
            entries[-1].append(line)
    return sorted(entries, key=lambda entry: "failed to load" not in entry[0])


_MOST_ERRORS, _MOST_LINES = 3, 12
_TRITON_ENTRY = re.compile(r"(?P<level>[IWEF])\d{4} (?:[\d:.]+ \d+ \S+\] )?(?P<text>.*)")
_LAST_WORDS = re.compile(r"terminate called|  what\(\):|Signal \(\d+\) received")


_NAME = f"internvideo-{os.getuid()}-"


def _runs_root() -> Path:
    return Path(tempfile.gettempdir())


def run_directories() -> Iterator[Path]:
    """The private directories of this user's runs, living and dead."""
    for directory in _runs_root().glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):  # it has just gone
            if not directory.is_symlink() and directory.stat().st_uid == os.getuid():
                yield directory


def _sweep() -> None:
    """End what runs left behind whose launcher and supervisor were both killed."""
    for directory in run_directories():
        with contextlib.suppress(OSError):  # another launcher sweeps it, or it is locked: alive
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _supervisor.remove_remains(directory.name.removeprefix(_NAME), (directory / "lock").stat().st_mtime)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)
