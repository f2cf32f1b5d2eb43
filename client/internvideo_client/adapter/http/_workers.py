"""Several adapter processes on one listening socket: started, started again when one dies, told of each signal."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess

_LEAST_S = 1.0  # between two starts of one process
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_log = logging.getLogger(__name__)


class Workers:
    """Processes that accept from one socket.

    Args:
        target: What each does, with the socket; importable by name.
        listening: The socket, bound.
        count: Of processes.
    """

    def __init__(self, target: Callable[[socket.socket], None], listening: socket.socket, count: int) -> None:
        self._target = target
        self._listening = listening
        self._count = count
        self._processes: list[SpawnProcess] = []
        self._stopping = False

    def run(self) -> None:
        """Until a SIGTERM or SIGINT, and the end of all processes after it."""
        for each in _SIGNALS:
            signal.signal(each, self._pass_on)
        self._processes = [self._start() for _ in range(self._count)]
        while any(process.is_alive() for process in self._processes) or not self._stopping:
            ready = multiprocessing.connection.wait([process.sentinel for process in self._processes], timeout=1.0)
            if ready and not self._stopping:
                self._renew()

    def _start(self) -> SpawnProcess:
        process = multiprocessing.get_context("spawn").Process(target=self._target, args=(self._listening,))
        process.start()
        return process

    def _renew(self) -> None:
        time.sleep(_LEAST_S)
        for number, process in enumerate(self._processes):
            if not process.is_alive() and not self._stopping:
                _log.error("adapter process %s ended with %s and is started again", process.pid, process.exitcode)
                self._processes[number] = self._start()

    def _pass_on(self, number: int, _: object) -> None:
        self._stopping = self._stopping or number != signal.SIGHUP
        for process in self._processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)
