"""The keeper: a small process between the launcher and what it starts, so that nothing outlives a run.

tritonserver's Python stubs, and the worker processes below them, stay behind when tritonserver is killed; when the launcher
itself is killed, nobody is left to end anything. So the launcher starts this file as a process in a session of its own, and the
keeper starts the programs. It ends them all when the launcher asks for it, when the launcher is gone (its end of the pipe
closes, by whatever death), or when one of the programs ends. Every process of a run is known by a mark in its environment,
which survives forks, new sessions and re-parenting.

Run as a script with the standard library alone: it must start fast and cannot fail on an import.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RUN_MARK = "INTERNVIDEO_RUN_ID"  # environment variable that marks every process of a run
TICK_S = 0.1
_BACKENDS_LOADED_S = 20.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SHM = Path("/dev/shm")  # noqa: S108 - where Triton's Python backend makes its segments
_PYTHON_ENVS = Path("/tmp")  # noqa: S108 - written down in Triton's Python backend (pb_env.cc), TMPDIR does not move it


def shm_prefix(run_id: str) -> str:
    """Prefix of the names of the run's segments in /dev/shm."""
    return f"internvideo_{run_id}_"


class Program:
    """One started program; ``code`` is its exit code (or minus the signal that ended it), None while it runs."""

    def __init__(self, name: str, argv: list[str], env: dict[str, str], log: str | None, grace_s: float) -> None:
        self.name, self.grace_s = name, grace_s
        with open(log, "ab") if log else contextlib.nullcontext() as output:
            self._process = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output or sys.stderr,
                stderr=output or sys.stderr,
                preexec_fn=_die_with_parent,
            )
        self.pid = self._process.pid

    @property
    def code(self) -> int | None:
        return self._process.returncode

    @code.setter
    def code(self, value: int) -> None:
        self._process.returncode = value  # the keeper's waitpid(-1) collected it, Popen could not any more

    def end(self, collect: Callable[[], None]) -> None:
        """SIGTERM, then SIGKILL when the grace is over."""
        for signum, grace in ((signal.SIGTERM, self.grace_s), (signal.SIGKILL, 10.0)):
            if self.code is None:
                os.kill(self.pid, signum)
            deadline = time.monotonic() + grace
            while self.code is None and time.monotonic() < deadline:
                time.sleep(0.02)
                collect()


def keep(spec: dict[str, Any]) -> dict[str, Any]:
    """Start the programs, wait for a reason to stop, end everything of the run.

    Args:
        spec: ``run_id``, ``since`` (time.time() of the start), ``parent`` (the launcher's process id), ``state_directory``
            (removed when the launcher is not there to do it) and ``programs``: name, argv, env, log (a file or None), grace_s.
            They are ended in reverse order.

    Returns:
        ``{}`` when asked to stop, else ``{"name", "code"}`` of the program that ended by itself (and ``reason``, if it could
        not be started).
    """
    stop = False

    def on_signal(signum: int, frame: object) -> None:
        nonlocal stop
        stop = True

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, on_signal)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans come to the keeper, which collects them
    programs: list[Program] = []

    def collect() -> None:
        for pid, code in _reap():
            for program in programs:
                if program.pid == pid:
                    program.code = code

    result: dict[str, Any] = {}
    try:
        for program in spec["programs"]:
            programs.append(Program(**program))
        while not stop and not result:
            readable, _, _ = select.select([sys.stdin.fileno()], [], [], TICK_S)
            collect()
            stop = stop or bool(readable) or os.getppid() != spec["parent"]
            result = next(({"name": p.name, "code": p.code} for p in programs if p.code is not None), {})
    except OSError as error:  # a program that cannot be started
        result = {"name": spec["programs"][len(programs)]["name"], "code": 127, "reason": str(error)}
    finally:
        for started in reversed(programs):
            started.end(collect)
        remove_remains(spec["run_id"], spec["since"])
        collect()
        if os.getppid() != spec["parent"]:
            shutil.rmtree(spec["state_directory"], ignore_errors=True)
    return result


_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """In the child: the kernel kills it when the keeper dies by a signal that the keeper cannot handle."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _reap() -> Iterator[tuple[int, int]]:
    """Collect every ended child, adopted ones included: (process id, exit code or minus the signal)."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def remove_remains(run_id: str, since: float) -> None:
    """End every process of the run that is still there, then remove its shared-memory segments and temporary directories.

    Args:
        run_id: The run's mark.
        since: When the run began (seconds of ``time.time()``).
    """
    deadline = time.monotonic() + 10
    while (left := list(marked_processes(run_id))) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)  # a killed process takes a moment to go; one that forked meanwhile is found by the next look
    for segment in _SHM.glob(f"{shm_prefix(run_id)}*"):
        segment.unlink(missing_ok=True)
    _remove_python_envs(since)


def marked_processes(run_id: str) -> Iterator[int]:
    """Process ids of the run, found by the mark in their environment (a zombie has none and is not listed)."""
    mark = f"{RUN_MARK}={run_id}".encode()
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _remove_python_envs(since: float) -> None:
    """Remove the empty /tmp/python_env_* directories that this run made and no living tritonserver can own.

    Triton makes one for each backend in Python, when the first model of it is loaded, and tells nobody the names. So one that
    is younger than this run, and was not made in the first seconds of a server that still lives, is an orphan. One that
    another server may own is left to that server's end.
    """
    living = list(_tritonserver_starts())
    for path in _PYTHON_ENVS.glob("python_env_??????"):
        with contextlib.suppress(OSError):  # rmdir takes only an empty directory; another user's is refused
            status = path.lstat()
            # File times come from a clock that ticks some milliseconds behind time.time().
            mine = status.st_uid == os.getuid() and status.st_mtime >= since - 0.1
            if mine and not any(start <= status.st_mtime <= start + _BACKENDS_LOADED_S for start in living):
                path.rmdir()


def _tritonserver_starts() -> Iterator[float]:
    """Start times (seconds since 1970) of the tritonserver processes that live on this machine."""
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    boot = time.time() - uptime
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = Path(entry.path, "stat").read_text()
                name = fields[fields.index("(") + 1 : fields.rindex(")")]
                *_, start_ticks, memory = fields[fields.rindex(")") + 2 :].split()[:21]  # proc(5): up to (22) and (23)
                if name == "tritonserver" and memory != "0":  # one that is dying, or a zombie, has given its memory back
                    # A tick and the clocks' reading may differ by a little: earlier is the careful side.
                    yield boot + int(start_ticks) / os.sysconf("SC_CLK_TCK") - 0.1


if __name__ == "__main__":
    if (line := sys.stdin.readline()).endswith("\n"):  # else the launcher died before it had said what to start
        sys.stdout.write(json.dumps(keep(json.loads(line))))
