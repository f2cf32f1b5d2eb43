"""Replicas join, rest and leave while the router runs."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

from internvideo_server.launch._errors import LaunchError, refused_by_the_system

from ._render import KEPT, RING, server
from ._replica import Replica, parse_all
from ._socket import AdminSocket, Server
from ._state import RouterState

_TICK_S = 0.1


def servers(directory: Path) -> list[Server]:
    """The replicas, and what each does now; files and responses that are asked for count, too.

    Raises:
        LaunchError: No router runs there.
    """
    admin = AdminSocket(directory)
    kept = admin.servers(KEPT)
    return [
        Server(
            each.name, each.address, each.status, each.in_flight + kept[each.name].in_flight, each.total + kept[each.name].total
        )
        for each in admin.servers(RING).values()
    ]


def add(directory: Path, text: str) -> Replica:
    """Take one more replica, or one again that rests. It gets requests once it is ready.

    Args:
        directory: The router's.
        text: ``NAME=URL``.

    Raises:
        LaunchError: No router runs there, it has another one of that name, or the host is not known.
    """
    admin, replica = AdminSocket(directory), Replica.parse(text)
    with RouterState.changing(directory) as state:
        known = {each.name: each for each in parse_all(state.settings.replica)}
        if replica.name in known:
            if known[replica.name] != replica:
                raise LaunchError(f"{known[replica.name]} is there already: remove it first, or choose another name")
            for group in (RING, KEPT):
                admin.do(f"set server {group}/{replica.name} state ready")
            replace(state, resting=state.resting - {replica.name}).write()
            return replica
        changed = state.with_replicas([*known.values(), replica])
        with refused_by_the_system(f"--replica {replica}"):
            address = socket.getaddrinfo(replica.host, replica.port, type=socket.SOCK_STREAM)[0][4][0]
        for group in (RING, KEPT):
            admin.do(f"add server {group}/{server(replica, state.settings, str(address))}", "New server registered")
            # Out of maintenance, it is taken for ready: it is not before it has been looked at.
            name = f"{group}/{replica.name}"
            admin.do(f"set server {name} state ready; set server {name} health down; enable health {name}")
        changed.write()
    return replica


def drain(directory: Path, name: str, timeout_s: float | None = None) -> int:
    """Give a replica nothing new but what it alone keeps; return when it has nothing to do.

    Args:
        directory: The router's.
        name: Of the replica.
        timeout_s: Longest wait; None: as long as it takes.

    Returns:
        Requests that are at work there still.

    Raises:
        LaunchError: No router runs there, or it has no such replica.
    """
    admin = AdminSocket(directory)
    with RouterState.changing(directory) as state:
        _known(admin, name)
        admin.do(f"set server {RING}/{name} state drain")
        replace(state, resting=state.resting | {name}).write()  # also when HAProxy is started again
    return _wait(directory, name, timeout_s)


@dataclass(frozen=True)
class Removed:
    """What became of a replica's requests.

    Attributes:
        cut: Those that were ended.
    """

    cut: int


def remove(directory: Path, name: str, timeout_s: float | None = None) -> Removed:
    """Drain a replica, then forget it.

    Args:
        directory: The router's.
        name: Of the replica.
        timeout_s: What is at work then is ended; None: nothing is.

    Raises:
        LaunchError: As of :func:`drain`.
    """
    admin = AdminSocket(directory)
    drain(directory, name, timeout_s)
    with RouterState.changing(directory) as state:
        admin.do(f"set server {KEPT}/{name} state maint")
        admin.do(f"set server {RING}/{name} state maint")
        left = _wait(directory, name, timeout_s)
        for group in (RING, KEPT):
            admin.do(f"shutdown sessions server {group}/{name}")
        if _wait(directory, name, 10.0):
            raise LaunchError(f"the requests of {name} do not end: try again")
        for group in (RING, KEPT):
            _delete(admin, f"{group}/{name}")
        rest = state.with_replicas([each for each in parse_all(state.settings.replica) if each.name != name])
        replace(rest, resting=state.resting - {name}).write()
    return Removed(left)


def _delete(admin: AdminSocket, server: str) -> None:
    """Idle connections to it are closed within moments."""
    deadline = time.monotonic() + 10.0
    while "deleted" not in (answer := admin.ask(f"del server {server}")):
        if time.monotonic() > deadline:
            raise LaunchError(f"haproxy does not delete {server}: {answer}")
        time.sleep(_TICK_S)


def _known(admin: AdminSocket, name: str) -> None:
    if name not in (found := admin.servers(RING)):
        raise LaunchError(f"the router has no replica {name}, only {', '.join(found) or 'none'}")


def _wait(directory: Path, name: str, timeout_s: float | None) -> int:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while left := next((each.in_flight for each in servers(directory) if each.name == name), 0):
        if deadline is not None and time.monotonic() >= deadline:
            return left
        time.sleep(_TICK_S)
    return 0
