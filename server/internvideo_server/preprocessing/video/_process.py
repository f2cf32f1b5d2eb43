"""One decoder and its control socket, seen from the server."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from internvideo_server.deadline import Deadline

from ._forks import Fork, ForkServer, WorkerDiedError, check_open, receive


class WorkerProcess:
    """A decoder that can be started again and again. Used by one thread at a time, except ``kill`` and ``pid``.

    Args:
        forks: Starts it.
        closed: Set when the server shuts down: nothing is started from then on, and waiting ends.
    """

    def __init__(self, forks: ForkServer, closed: threading.Event) -> None:
        self._forks, self._closed = forks, closed
        self._lock = threading.Lock()  # between start and kill
        self._fork: Fork | None = None
        self._control: socket.socket | None = None
        self._ready = False
        self.decoded = 0  # media, since its start

    @property
    def pid(self) -> int | None:
        """The process id, if it was started."""
        fork = self._fork
        return fork.pid if fork else None

    def start(self) -> None:
        """Start the process if there is none; returns before it is ready.

        Raises:
            ServingError: CANCELLED: shutting down.
            WorkerDiedError, OSError: No process or socket to be had.
        """
        with self._lock:
            check_open(self._closed)
            if self._fork is not None:
                return
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    self._fork = self._forks.fork(theirs)
                except BaseException:
                    ours.close()
                    raise
            self.dispose()
            self._control, self._ready, self.decoded = ours, False, 0

    def wait_ready(self, deadline: Deadline) -> None:
        """Wait for the process's first words. Raises like :meth:`receive`."""
        if not self._ready:
            self.receive(deadline, "waiting for a decoder")
            self._ready = True

    def send(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        """Hand over a job and open files.

        Raises:
            WorkerDiedError: The process is gone.
        """
        self.decoded += 1
        try:
            socket.send_fds(self._socket(), [json.dumps(message).encode()], fds)
        except OSError:
            raise WorkerDiedError(self._how_it_ended()) from None

    def receive(self, deadline: Deadline, doing: str = "decoding the media") -> dict[str, Any]:
        """Wait for an answer.

        Raises:
            WorkerDiedError: The process is gone.
            ServingError: CANCELLED or DEADLINE_EXCEEDED.
        """
        answer = receive(self._socket(), deadline, doing, self._closed)
        if answer is None:
            check_open(self._closed)
            raise WorkerDiedError(self._how_it_ended())
        return answer

    def has_more(self) -> bool:
        """Whether a message has come that was not received yet."""
        readable = select.poll()
        readable.register(self._socket(), select.POLLIN)
        return bool(readable.poll(0))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It does nothing while the context is open."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with self._lock, suppress(ProcessLookupError):
            if self._fork is not None:
                os.kill(self._fork.pid, number)

    def kill(self) -> None:
        """End the process at once, whatever it does. A thread that waits for its answer sees the end."""
        with self._lock:
            if self._fork is not None:
                self._forks.end(self._fork)
                self._fork = None

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
        with self._lock:
            if self._fork is None:
                return "it was ended"
            code = self._forks.end(self._fork)
            self._fork = None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
