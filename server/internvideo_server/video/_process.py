"""One decoder process and its control socket, seen from the server."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.media import POLL_SECONDS, Budget

_MESSAGE_BYTES = 1 << 16
# Each malloc arena reserves 64 MiB of address space and OpenBLAS more: on a large host they alone would reach the
# worker's limit. Frames come and go in hundreds: their memory is kept, since fresh pages cost more than a frame's conversion.
_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "4",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "PILLOW_BLOCKS_MAX": "4",  # of 16 MiB
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class WorkerDiedError(Exception):
    """The process is gone; the text says how."""


class WorkerProcess:
    """A process that can be started again and again. Used by one thread at a time, except ``kill`` and ``pid``.

    Args:
        python: The program.
        limits: DecodeLimits as JSON.
        closed: Set when the server shuts down: nothing is started from then on, and waiting ends.
    """

    def __init__(self, python: str, limits: str, closed: threading.Event) -> None:
        self._command = [python, "-P", "-m", "internvideo_server.video._worker"]
        self._limits = limits
        self._closed = closed
        self._lock = threading.Lock()  # between start and kill
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready = False

    @property
    def pid(self) -> int | None:
        """The process id, if it was started."""
        process = self._process
        return process.pid if process else None

    def start(self) -> None:
        """Start the process if there is none; returns before it is ready.

        Raises:
            ServingError: CANCELLED: shutting down.
            OSError: No process or socket to be had.
        """
        with self._lock:
            self._check_open()
            if self._process is not None:
                return
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    self._process = subprocess.Popen(
                        [*self._command, str(theirs.fileno()), self._limits],
                        pass_fds=[theirs.fileno()],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    )
                except OSError:
                    ours.close()
                    raise
            self.dispose()
            self._control, self._ready = ours, False

    def wait_ready(self, budget: Budget) -> None:
        """Wait for the process's first words. Raises like :meth:`receive`."""
        if not self._ready:
            self.receive(budget, "waiting for a decoder")
            self._ready = True

    def send(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        """Hand over a job and open files.

        Raises:
            WorkerDiedError: The process is gone.
        """
        try:
            socket.send_fds(self._socket(), [json.dumps(message).encode()], fds)
        except OSError:
            raise WorkerDiedError(self._how_it_ended()) from None

    def receive(self, budget: Budget, doing: str = "decoding the media") -> dict[str, Any]:
        """Wait for an answer.

        Raises:
            WorkerDiedError: The process is gone.
            ServingError: CANCELLED or DEADLINE_EXCEEDED.
        """
        control = self._socket()
        readable = select.poll()  # not select.select: the server may hold more than 1024 open files
        readable.register(control, select.POLLIN)
        while not readable.poll(1000 * POLL_SECONDS):
            self._check_open()
            budget.check(doing)
        try:
            message = control.recv(_MESSAGE_BYTES)
        except OSError:
            message = b""
        if not message:
            self._check_open()
            raise WorkerDiedError(self._how_it_ended())
        answer: dict[str, Any] = json.loads(message)
        return answer

    def kill(self) -> None:
        """End the process at once, whatever it does. A thread that waits for its answer sees the end."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None

    def dispose(self) -> None:
        """Close the socket; by the thread that uses it."""
        if self._control is not None:
            self._control.close()
            self._control = None

    def _socket(self) -> socket.socket:
        if self._control is None:
            raise WorkerDiedError("it was never started")
        return self._control

    def _how_it_ended(self) -> str:
        process = self._process
        if process is None:
            return "it was ended"
        try:
            code = process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "it stopped answering"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ServingError(ErrorCode.CANCELLED, "the server is shutting down")


def find_python() -> str:
    """The Python program of this interpreter, also where ``sys.executable`` is none (embedded, as in a Triton stub).

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
