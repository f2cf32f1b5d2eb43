"""The ports of a run."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from ._errors import LaunchError


def resolve_ports(wanted: dict[str, tuple[str, int]]) -> dict[str, int]:
    """Check the given ports and choose free ones for 0.

    Args:
        wanted: Flag (for messages) -> (host, port).

    Returns:
        Flag -> port; all different.

    Raises:
        LaunchError: A given port is not a port or is taken, the host is not this machine's, or no port is free.
    """
    resolved: dict[str, int] = {}
    for flag, (host, port) in wanted.items():
        if not 0 <= port < 65536:  # a resolver would take the lowest 16 bits
            raise LaunchError(f"{flag} must be a port from 0 to 65535, got {port}")
        if port and port in resolved.values():
            raise LaunchError(f"{flag} {port} is used for two things")
        if port and (error := _refusal(host, port)):
            raise LaunchError(f"{flag}: cannot listen on {host}:{port} ({error}); choose another port, 0 takes a free one")
        if port:
            resolved[flag] = port
    for flag, (host, port) in wanted.items():
        if not port:
            resolved[flag] = _free_port(host, set(resolved.values()))
    return resolved


def _free_port(host: str, taken: set[int]) -> int:
    """A free port below the range that the kernel gives to outgoing connections.

    tritonserver opens its ports seconds later; one from that range could be an outgoing connection's by then.
    """
    low = 32768
    if (setting := Path("/proc/sys/net/ipv4/ip_local_port_range")).exists():
        low = int(setting.read_text().split()[0])
    candidates = range(10000, low) if low > 12000 else range(61000, 65536)
    error = None
    for port in random.SystemRandom().sample(candidates, 200):
        if port not in taken and not (error := _refusal(host, port)):
            return port
    raise LaunchError(f"no free port found on {host} ({error})")


def _refusal(host: str, port: int) -> OSError | None:
    """Why nothing can listen there, None where it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free for a server
            probe.bind(address)
    except OSError as error:
        return error
    return None
