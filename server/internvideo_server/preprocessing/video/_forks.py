"""The fork server seen from the server: it starts decoders and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from internvideo_server.deadline import POLL_SECONDS, Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.sandbox import Held

MESSAGE_BYTES = 1 << 16
_ANSWER_SECONDS = 120.0  # its start: a second of imports, but from a slow disk on a busy machine
# Each malloc arena reserves 64 MiB of address space and OpenBLAS more: on a large host they alone would reach the
# worker's limit. Frames come and go in hundreds: their memory is kept, since fresh pages cost more than a frame's conversion.
_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "4",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "PILLOW_BLOCKS_MAX": "4",  # of 16 MiB
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUTF8": "1",
}
# All that is passed on: where libraries lie and compiled code is kept, and for nvdec which GPU.
_PASSED = ("LD_LIBRARY_PATH", "HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")
_PASSED_TO_GPU = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_PIPE_DIRECTORY", "NVIDIA_VISIBLE_DEVICES")


class WorkerDiedError(Exception):
    """A process is gone; the text says how."""


def receive(
    control: socket.socket, deadline: Deadline, doing: str, closed: threading.Event | None = None
) -> dict[str, Any] | None:
    """Wait for a message; None: the other side has ended.

    Args:
        control: The socket.
        deadline: Ends the waiting.
        doing: What for, in the error.
        closed: Ends it too.

    Raises:
        ServingError: CANCELLED or DEADLINE_EXCEEDED.
    """
    readable = select.poll()  # not select.select: the server may hold more than 1024 open files
    readable.register(control, select.POLLIN)
    while not readable.poll(1000 * POLL_SECONDS):
        check_open(closed)
        deadline.check(doing)
    try:
        message = control.recv(MESSAGE_BYTES)
    except OSError:
        message = b""
    try:
        return json.loads(message) if message else None
    except ValueError:
        return {}  # which answers nothing


def check_open(closed: threading.Event | None) -> None:
    """Raise CANCELLED if the server shuts down."""
    if closed is not None and closed.is_set():
        raise ServingError(ErrorCode.CANCELLED, "the server is shutting down")


@dataclass(frozen=True)
class Fork:
    """A decoder that was started."""

    pid: int
    parent: subprocess.Popen[bytes]  # with which it ends


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[bytes]
    control: socket.socket


class ForkServer:
    """Starts the process that forks, again where it has ended. Thread-safe.

    Args:
        python: The program.
        limits: DecodeLimits as JSON.
        on_gpu: Pass on which GPU is to be used.
        closed: Set when the server shuts down: nothing is started from then on.
    """

    def __init__(self, python: str, limits: str, *, on_gpu: bool, closed: threading.Event) -> None:
        self._command = [python, "-P", "-m", "internvideo_server.preprocessing.video._fork_server"]
        self._limits, self._closed = limits, closed
        self._passed = _PASSED + _PASSED_TO_GPU * on_gpu
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def start(self) -> Held:
        """Start it and wait.

        Returns:
            What its decoders cannot do.

        Raises:
            WorkerDiedError: It ends instead (its own error is on stderr).
            ServingError: CANCELLED: shutting down.
            OSError: No process or socket to be had.
        """
        with self._lock:
            return self._start()[1]

    def fork(self, theirs: socket.socket) -> Fork:
        """Start a decoder.

        Args:
            theirs: Its end of the control socket, which the caller closes.

        Raises:
            WorkerDiedError, ServingError, OSError: As for :meth:`start`.
        """
        with self._lock:
            check_open(self._closed)
            running = self._running
            if running is None or running.process.poll() is not None:
                running = self._start()[0]
            return Fork(_ask(running, {"start": True}, [theirs.fileno()])["pid"], running.process)

    def end(self, fork: Fork) -> int:
        """End a decoder, if it has not ended.

        Returns:
            How it ended: an exit code, or a signal's number below 0.
        """
        with self._lock:
            running = self._running
            if running is not None and running.process is fork.parent:
                with contextlib.suppress(WorkerDiedError):
                    return int(_ask(running, {"end": fork.pid})["code"])
            return -signal.SIGKILL  # with its parent

    def close(self) -> None:
        """End it. Closing twice is fine."""
        with self._lock:
            self._stop()

    def _start(self) -> tuple[_Running, Held]:
        self._stop()
        check_open(self._closed)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = subprocess.Popen(
                    [*self._command, str(theirs.fileno()), self._limits],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=self._environment(os.environ),
                )
            except OSError:
                ours.close()
                raise
        self._running = _Running(process, ours)
        return self._running, Held(**_answer(self._running, self._closed)["held"])

    def _stop(self) -> None:
        if self._running is not None:
            self._running.process.kill()
            self._running.process.wait()
            self._running.control.close()
            self._running = None

    def _environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """Nothing of the server's: keys and tokens may stand there."""
        passed = {name: own[name] for name in self._passed if name in own}
        return {**passed, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _ask(running: _Running, question: dict[str, Any], fds: list[int] | None = None) -> dict[str, Any]:
    try:
        socket.send_fds(running.control, [json.dumps(question).encode()], fds or [])
    except OSError:
        raise WorkerDiedError("the process that decoders are forked from ended") from None
    return _answer(running)


def _answer(running: _Running, closed: threading.Event | None = None) -> dict[str, Any]:
    answer = receive(running.control, Deadline.after(_ANSWER_SECONDS), "starting a decoder", closed)
    if answer is None:
        raise WorkerDiedError("the process that decoders are forked from ended")
    return answer


def find_python() -> str:
    """The Python program of this interpreter, also where ``sys.executable`` is not one (embedded, as in a Triton stub).

    Raises:
        RuntimeError: There is none.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    home = os.path.join(sys.prefix, "bin")
    names = (sys.executable or "", os.path.join(home, version), os.path.join(home, "python3"), version, "python3")
    for name in names:
        if os.path.basename(name).startswith("python") and (found := shutil.which(name)):
            return found
    raise RuntimeError(f"no {version} found to run the decoder processes: put it on PATH")
