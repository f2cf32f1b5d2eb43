"""The supervisor: a small process between the launcher and what it starts, so that nothing outlives a run.

tritonserver's Python stubs, and the worker processes below them, stay behind when tritonserver is killed; when the launcher
itself is killed, nobody is left to end anything. So the launcher starts this file as a process in a session of its own, and the
supervisor starts the programs. It ends them all when the launcher asks for it, or when the launcher is gone (its end of the pipe
closes, by whatever death). Every process of a run is known by a mark in its environment, which survives forks, new sessions and
re-parenting.

It takes one JSON object a line on stdin: first what to start, then ``{"start": NAME}``, ``{"end": NAME}``, ``{"kill": NAME}``,
``{"hang_up": NAME}``. It tells on stdout, likewise: ``{"event": "ended" | "stub_started" | "stub_ended", ...}``. What follows
from a death is decided in the launcher (``_recovery.py``).

Run as a script with the standard library alone: it must start fast and cannot fail on an import.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
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


_TRITON_LINE = re.compile(rb"^[IWE]\d{4} ", re.MULTILINE)
_STUB = "triton_python_backend_stub"
_MPS = "nvidia-cuda-mps"  # of its control and its server, by the 15 characters that the kernel keeps


class Program:
    """One program of the run, started or not; ``code`` is its exit code or minus the signal that ended it, None while it runs."""

    def __init__(
        self, name: str, argv: list[str], env: dict[str, str], log: str | None, grace_s: float, hidden: str, stop_signal: int
    ) -> None:
        self.name, self._argv, self._env, self._log, self._grace_s = name, argv, env, log, grace_s
        self._secret, self._stop_signal = hidden.encode(), stop_signal
        self._to_hide = False
        self._kill_at: float | None = None
        self.pid = 0
        self.code: int | None = None

    @property
    def running(self) -> bool:
        return self.pid > 0 and self.code is None

    def start(self) -> None:
        """Start it, or start it again.

        Raises:
            OSError: It cannot be started.
        """
        with open(self._log, "ab") if self._log else contextlib.nullcontext() as output:
            self._hide_from = output.tell() if output else 0
            process = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output or sys.stderr,
                stderr=output or sys.stderr,
                preexec_fn=_die_with_parent,
            )
        self.pid, self.code, self._kill_at, self._to_hide = process.pid, None, None, bool(self._secret and self._log)
        process.returncode = 0  # the supervisor's waitpid(-1) collects it: Popen must not look for it when it is deleted

    def tick(self, run_id: str) -> None:
        """Blot out its secret in the command lines that every user of the machine can read; end it if its time is up.

        The secret not before the program has read it, which its first line of log shows.
        """
        if self._to_hide and self._log and _TRITON_LINE.search(_read_from(self._log, self._hide_from)):
            for pid in marked_processes(run_id):
                blot_out(pid, self._secret)
            self._to_hide = False
        if self._kill_at is not None and self.running and time.monotonic() > self._kill_at:
            os.kill(self.pid, signal.SIGKILL)

    def ask_to_end(self) -> None:
        """SIGTERM now, SIGKILL when the grace is over."""
        if self.running:
            self._kill_at = time.monotonic() + self._grace_s
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: it stands still."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)

    def hang_up(self) -> None:
        """SIGHUP: it reads its files again."""
        if self.running:
            os.kill(self.pid, signal.SIGHUP)

    def end(self, collect: Callable[[], None]) -> None:
        """Its stop signal, then SIGKILL when the grace is over; returns when it has ended."""
        for signum, grace in ((self._stop_signal, self._grace_s), (signal.SIGKILL, 10.0)):
            if self.running:
                os.kill(self.pid, signum)
            deadline = time.monotonic() + grace
            while self.running and time.monotonic() < deadline:
                time.sleep(0.02)
                collect()


class Stubs:
    """The processes of the Python models: their deaths are seen at once, by descriptor."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._known: dict[int, tuple[int, str, str]] = {}  # descriptor -> process id, model, segment
        self._oom_kills = oom_kills()

    @property
    def descriptors(self) -> list[int]:
        return list(self._known)

    def look(self, parents: list[int]) -> None:
        """Find new ones among the descendants of ``parents``, but for those of the known ones."""
        known = {pid for pid, _, _ in self._known.values()}
        for pid in descendants(parents, known):
            if pid not in known:
                with contextlib.suppress(OSError):
                    arguments = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
                    if arguments[0].endswith(_STUB) and len(arguments) > 9:  # one that is dying shows a part
                        # Its arguments: model.py, segment, two sizes, parent, library directory, IPC handle, instance, runtime.
                        model = arguments[8].rsplit("_", 2)[0]
                        self._known[os.pidfd_open(pid)] = (pid, model, arguments[2])
                        self._tell({"event": "stub_started", "model": model, "pid": pid})

    def ended(self, descriptor: int) -> None:
        """Tell that one has ended, and take its shared memory away: Triton leaves it."""
        pid, model, segment = self._known.pop(descriptor)
        os.close(descriptor)
        code = _code_of_zombie(pid)
        before, self._oom_kills = self._oom_kills, oom_kills()
        out_of_memory = code in (None, -signal.SIGKILL) and self._oom_kills > before
        (_SHM / segment).unlink(missing_ok=True)
        self._tell({"event": "stub_ended", "model": model, "pid": pid, "code": code, "out_of_memory": out_of_memory})

    def kill(self, model: str) -> None:
        """End the process of a model: it stands still."""
        for pid, name, _ in self._known.values():
            if name == model:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def forget(self) -> None:
        """The server that had them is gone."""
        for descriptor in self._known:
            os.close(descriptor)
        self._known.clear()


def supervise(spec: dict[str, Any], pending: bytes = b"") -> None:
    """Start the programs, start and end them as the launcher says, and end everything of the run when its pipe closes.

    Args:
        spec: ``run_id``, ``since`` (time.time() of the start), ``parent`` (the launcher's process id), ``state_directory``
            (removed when the launcher is not there to do it) and ``programs``, the fields of ``ProgramSpec``. They are ended in
            reverse order.
        pending: What was read of the commands already.
    """
    stop = False

    def on_signal(signum: int, frame: object) -> None:
        nonlocal stop
        stop = True

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, on_signal)
    os.umask(0o077)  # logs and /dev/shm segments hold what people ask
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans come to the supervisor, which collects them
    programs = {program["name"]: Program(**program) for program in spec["programs"]}
    stubs = Stubs(_tell)
    oom = oom_kills()

    def collect() -> None:
        for pid, code in _reap():
            for program in programs.values():
                if program.pid == pid:
                    program.code = code

    def start(name: str) -> None:
        try:
            programs[name].start()
        except OSError as error:
            programs[name].code = 127
            _tell({"event": "ended", "name": name, "code": 127, "reason": str(error)})

    def kill(name: str) -> None:
        programs[name].kill() if name in programs else stubs.kill(name)

    commands: dict[str, Callable[[str], None]] = {
        "start": start,
        "end": lambda name: programs[name].ask_to_end(),
        "kill": kill,
        "hang_up": lambda name: programs[name].hang_up(),
    }
    try:
        for name in programs:
            start(name)
        while not stop:
            readable, _, _ = select.select([sys.stdin.fileno(), *stubs.descriptors], [], [], TICK_S)
            running = {name for name, program in programs.items() if program.running}
            collect()
            for name in [name for name in running if not programs[name].running]:
                before, oom = oom, oom_kills()
                if name == "tritonserver":
                    stubs.forget()
                    end_orphans(spec["run_id"], programs)
                code = programs[name].code
                _tell({"event": "ended", "name": name, "code": code, "out_of_memory": code == -signal.SIGKILL and oom > before})
            for descriptor in set(readable) & set(stubs.descriptors):
                stubs.ended(descriptor)
            for program in programs.values():
                program.tick(spec["run_id"])
            stubs.look([program.pid for program in programs.values() if program.name == "tritonserver" and program.running])
            close_segments(spec["run_id"])
            if sys.stdin.fileno() in readable:
                data = os.read(sys.stdin.fileno(), 65536)
                stop = not data
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    for command, name in json.loads(line).items():
                        commands[command](name)
            stop = stop or os.getppid() != spec["parent"]
    finally:
        for program in reversed(programs.values()):
            program.end(collect)
        remove_remains(spec["run_id"], spec["since"])
        collect()
        if os.getppid() != spec["parent"]:
            shutil.rmtree(spec["state_directory"], ignore_errors=True)


def _tell(event: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the launcher is gone, which the loop sees
        os.write(sys.stdout.fileno(), json.dumps(event).encode() + b"\n")


def end_orphans(run_id: str, programs: dict[str, Program]) -> None:
    """End what a dead tritonserver left: its stubs and what they started, with their shared memory; not CUDA's own service."""
    spared: set[int] = set()
    for program in programs.values():
        if program.running:
            spared |= {program.pid, *descendants([program.pid])}
    for pid in set(marked_processes(run_id)) - spared:
        with contextlib.suppress(OSError):  # it went meanwhile
            if Path(f"/proc/{pid}/comm").read_text().strip() != _MPS:
                os.kill(pid, signal.SIGKILL)
    for segment in _SHM.glob(f"{shm_prefix(run_id)}*"):
        segment.unlink(missing_ok=True)


def descendants(parents: list[int], seen: Collection[int] = ()) -> Iterator[int]:
    """Process ids below ``parents``, at any depth, without ``seen`` and what is below those."""
    for parent in parents:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for pid in map(int, children.read_text().split()):
                    if pid not in seen:
                        yield pid
                        yield from descendants([pid], seen)


def oom_kills() -> int:
    """How often the kernel has killed for want of memory, on this machine and in this control group."""
    total = 0
    group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    for file in (Path("/proc/vmstat"), Path("/sys/fs/cgroup", group, "memory.events"), Path("/sys/fs/cgroup/memory.events")):
        with contextlib.suppress(OSError):
            total += sum(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill "))
    return total


def _code_of_zombie(pid: int) -> int | None:
    """The exit code (or minus the signal) of an ended process that its parent has not collected yet; None where it has."""
    with contextlib.suppress(OSError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] == "Z":
            return os.waitstatus_to_exitcode(int(fields[49]))  # proc(5): (52) exit_code
    return None


def _read_from(log: str, position: int) -> bytes:
    with open(log, "rb") as file:
        file.seek(position)
        return file.read(4096)


_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """In the child: the kernel kills it when the supervisor dies by a signal that the supervisor cannot handle."""
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


def close_segments(run_id: str) -> None:
    """Take the run's shared memory, which holds what people ask, from other users.

    Triton makes its segments with mode 0644 whatever the umask (Boost sets it by fchmod), before a model can be asked.
    """
    for segment in _SHM.glob(f"{shm_prefix(run_id)}*"):
        with contextlib.suppress(OSError):  # it went meanwhile
            if segment.stat().st_mode & 0o077:
                segment.chmod(0o600)


def blot_out(pid: int, secret: bytes) -> None:
    """Overwrite ``secret`` in a process's command line; nothing where the kernel does not let this user."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        start = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[45])  # proc(5): (48) arg_start
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            place = arguments.find(secret)
            while place >= 0:
                memory.seek(start + place)
                memory.write(b"*" * len(secret))
                place = arguments.find(secret, place + 1)


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
    received = b""
    while b"\n" not in received and (data := os.read(sys.stdin.fileno(), 65536)):
        received += data
    first, newline, rest = received.partition(b"\n")
    if newline:  # else the launcher died before it had said what to start
        supervise(json.loads(first), rest)
