"""A replica as the router knows it."""

from __future__ import annotations

import ipaddress
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from internvideo_server.launch._errors import LaunchError
from internvideo_server.routing import NAME

#: HAProxy places a server on its ring by id * 4096, in 32 bits.
_NUMBERS = 1 << 20


@dataclass(frozen=True)
class Replica:
    """One replica.

    Attributes:
        name: As it was told by ``--replica-name``.
        host: Name or address.
        tls: Whether it is asked by HTTPS.
    """

    name: str
    host: str
    port: int
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Replica:
        """From ``NAME=URL``, or from a URL alone: then it is called HOST-PORT.

        Raises:
            LaunchError: It is neither.
        """
        given, equals, url = text.partition("=")
        given, url = (given, url) if equals and "/" not in given else ("", text)
        try:
            parsed = urlsplit(url)
            host, port = parsed.hostname, parsed.port or {"http": 80, "https": 443}[parsed.scheme]
        except (ValueError, KeyError):
            host = None
        if host is None or not re.fullmatch(r"[A-Za-z0-9.:_-]+", host) or parsed.path not in ("", "/") or parsed.query:
            raise LaunchError(f"--replica {text}: give NAME=URL with a URL such as http://10.0.0.1:9997")
        name = given or re.sub("[^a-z0-9]+", "-", f"{host}-{port}").strip("-")
        if not re.fullmatch(NAME, name):
            raise LaunchError(f"--replica {text}: a name has small letters, digits and hyphens inside, at most 63")
        return cls(name, host, port, parsed.scheme == "https")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.name}={'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def number(self) -> int:
        """Its place on the ring: by its name alone, so that all routers agree, whatever they were told, and when."""
        return zlib.crc32(self.name.encode()) % (_NUMBERS - 1) + 1

    @property
    def has_address(self) -> bool:
        """Whether the host is an address and no name."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


def parse_all(texts: Sequence[str]) -> list[Replica]:
    """Replicas that can stand beside each other.

    Raises:
        LaunchError: Two have one name, or names that fall onto one place of the ring.
    """
    replicas = [Replica.parse(text) for text in texts]
    seen: dict[int, Replica] = {}
    for replica in replicas:
        if (other := seen.setdefault(replica.number, replica)) is not replica:
            what = "one name" if other.name == replica.name else "names that fall onto one place of the ring: call one otherwise"
            raise LaunchError(f"--replica {other} and {replica} have {what}")
    return replicas
