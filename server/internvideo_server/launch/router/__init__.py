"""HAProxy in front of several replicas: its configuration, its start, and what is changed while it runs."""

from ._change import add, drain, remove, servers
from ._haproxy import find_haproxy
from ._program import HAPROXY, drain_router, read_certificate, router_program, start_again
from ._render import render
from ._replica import Replica
from ._serve import route
from ._socket import AdminSocket, Server

__all__ = [
    "HAPROXY",
    "AdminSocket",
    "Replica",
    "Server",
    "add",
    "drain",
    "drain_router",
    "find_haproxy",
    "read_certificate",
    "remove",
    "render",
    "route",
    "router_program",
    "servers",
    "start_again",
]
