"""What the sandbox keeps out on this machine: found out by trying, in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import _landlock
from ._sandbox import Sandbox

_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Held:
    """What a process in the sandbox cannot do.

    Attributes:
        landlock: Version of the kernel's interface, 0: none. From 4 on it covers TCP, from 6 on signals.
        files: It opens no file.
        network: It makes no socket.
        processes: It starts none, and no program.
    """

    landlock: int
    files: bool
    network: bool
    processes: bool

    @property
    def everything(self) -> bool:
        """Whether all of it holds."""
        return self.files and self.network and self.processes

    @property
    def missing(self) -> str:
        """What does not, for people; empty: everything holds."""
        open_doors = {"files": self.files, "the network": self.network, "other programs": self.processes}
        return ", ".join(door for door, held in open_doors.items() if not held)


def tried(sandbox: Sandbox) -> Held:
    """Fork, close the sandbox there, and try. For a process of one thread."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            sandbox.close()
            os.write(writing, json.dumps(dataclasses.asdict(_try())).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return Held(**json.loads(text)) if text else Held(0, False, False, False)


def tried_elsewhere(python: str = sys.executable) -> Held:
    """The same for a process with threads.

    Args:
        python: The program.

    Raises:
        OSError: It cannot be started.
    """
    done = subprocess.run(
        [python, "-P", "-m", __package__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIMEOUT_S,
    )
    return Held(**json.loads(done.stdout)) if done.returncode == 0 else Held(0, False, False, False)


def _try() -> Held:
    return Held(_landlock.version(), _refused(_open), _refused(_socket), _refused(_fork))


def _refused(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except PermissionError:
        return True
    return False


def _open() -> None:
    Path("/proc/self/status").read_bytes()


def _socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


def _fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
