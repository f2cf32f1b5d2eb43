"""Which network addresses may be reached for a request: public ones, and each connection goes to the address that was checked."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterable

import httpcore2

from internvideo_server.errors import ErrorCode, ServingError

from ._policy import MediaPolicy
from ._stream import WatchedStream

_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))  # IPv4 hosts behind a gateway
# Beside what Python 3.11 knows: Azure's host services, metadata of Oracle's cloud, documentation.
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "3fff::/20")))


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, however it is written.

    Args:
        address: Numeric, as ``getaddrinfo`` gives it. Addresses that carry an IPv4 address inside (mapped, 6to4, Teredo,
            NAT64) are never public: they are another way to write what may be private.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip.is_site_local or any(ip in network for network in _NAT64):
            return False
    if any(ip.version == network.version and ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local)


def is_own(address: str) -> bool:
    """Whether it is an address of this machine, also a public one: what listens there may trust who comes from inside."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


class CheckedBackend(httpcore2.NetworkBackend):
    """Connects to a host's address after looking at it: no second look-up comes between check and use (DNS rebinding).

    TLS still asks for the host's name, because only the TCP connection is made by address.

    Args:
        policy: What the operator allows.
        param: The request field to name in errors.
        left: Set when nobody waits any more.
    """

    def __init__(self, policy: MediaPolicy, param: str | None, left: threading.Event) -> None:
        self._policy, self._param, self._left = policy, param, left
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """See httpcore. All addresses of the host must be allowed; they are tried in the resolver's order."""
        failed: Exception = httpcore2.ConnectError("no address")
        for address in self._checked_addresses(host, port):
            if self._left.is_set():
                break
            try:
                stream = self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
                return WatchedStream(stream, self._left)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        raise failed

    def _checked_addresses(self, host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, OverflowError):
            raise httpcore2.ConnectError("unknown host") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self._policy.takes_private(host) and not all(is_public(each) and not is_own(each) for each in addresses):
            raise ServingError(
                ErrorCode.PERMISSION_DENIED,
                "the URL's host is not on the public internet (option --allow-private-media-host): send the file itself",
                self._param,
            )
        return addresses
