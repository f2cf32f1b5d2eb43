"""HAProxy's runtime API, over its admin socket."""

from __future__ import annotations

import csv
import io
import socket
from dataclasses import dataclass
from pathlib import Path

from internvideo_server.launch._errors import LaunchError

SOCKET = "admin.sock"
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Server:
    """One server of a group.

    Attributes:
        status: HAProxy's word: UP, DOWN, DRAIN, MAINT, ...
        in_flight: Requests at work there.
        total: Requests since the start.
    """

    name: str
    address: str
    status: str
    in_flight: int
    total: int


class AdminSocket:
    """Commands to a running HAProxy.

    Args:
        directory: The router's.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / SOCKET

    def ask(self, command: str) -> str:
        """What one command answers.

        Raises:
            LaunchError: No router runs there, or it belongs to another user.
        """
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_TIMEOUT_S)
                connection.connect(str(self._path))
                connection.sendall(command.encode() + b"\n")
                with connection.makefile("rb") as answer:
                    return answer.read().decode().strip()
        except OSError as error:
            message = f"no router answers at {self._path} ({error}): start it by `internvideo router`, see --router-directory"
            raise LaunchError(message) from error

    def do(self, command: str, expected: str = "") -> None:
        """A command that answers nothing, or words with ``expected`` in them.

        Raises:
            LaunchError: It answers something else: it was refused.
        """
        answer = self.ask(command)
        if answer and not (expected and expected in answer):
            raise LaunchError(f"haproxy refuses `{command}`: {answer}")

    def servers(self, group: str) -> dict[str, Server]:
        """Those of a group, by name."""
        rows = csv.DictReader(io.StringIO(self.ask(f"show stat {group} 4 -1").removeprefix("# ")))
        found = [
            Server(row["svname"], row["addr"], row["status"], int(row["scur"]) + int(row["qcur"]), int(row["stot"]))
            for row in rows
        ]
        return {each.name: each for each in found}
