"""What the operator allows requests to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MediaPolicy:
    """Where media may come from and how much of it is taken. Set by the operator, never by a request.

    Args:
        allowed_local_roots: Folders whose files ``file://`` URLs may name. None given: no local files.
        max_bytes: Largest file, download or upload, in bytes; downloads and uploads are held in memory.
        allowed_hosts: Host names (exact, lower case) that may be fetched from; empty: any host with public addresses.
        allow_private_addresses: Lets the *listed* hosts have loopback or private addresses (an internal object store).
        read_timeout: Seconds that a remote host may be silent.
        total_timeout: Seconds for a whole download.

    Raises:
        ValueError: A root is no folder, or private addresses are allowed without a list of hosts.
    """

    allowed_local_roots: tuple[Path, ...] = ()
    max_bytes: int = 512 << 20
    allowed_hosts: tuple[str, ...] = ()
    allow_private_addresses: bool = False
    read_timeout: float = 10.0
    total_timeout: float = 120.0

    def __post_init__(self) -> None:
        roots = tuple(Path(root).resolve() for root in self.allowed_local_roots)
        for root in roots:
            if not root.is_dir():
                raise ValueError(f"allowed local media path {root} is no folder")
        if self.allow_private_addresses and not self.allowed_hosts:
            raise ValueError("allow_private_addresses needs allowed_hosts: it would open the internal network otherwise")
        object.__setattr__(self, "allowed_local_roots", roots)
