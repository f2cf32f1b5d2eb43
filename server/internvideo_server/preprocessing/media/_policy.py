"""What the operator allows requests to read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from internvideo_server.settings import PreprocessingSettings

from ._memory import MediaMemory


@dataclass(frozen=True)
class MediaPolicy:
    """Where media may come from and how much of it is taken. Set by the operator, never by a request.

    Args:
        allowed_local_roots: Folders whose files ``file://`` URLs may name. None given: no local files.
        max_bytes: Largest file, download or upload, in bytes; downloads and uploads are held in memory.
        max_total_bytes: All media of one request together.
        allowed_hosts: Host names (exact) that may be fetched from; empty: any host with public addresses.
        private_hosts: Hosts that may be fetched from although their addresses are private or loopback (an internal object store).
        http: Whether ``http(s)://`` URLs are taken at all.
        read_timeout: Seconds that a remote host may be silent.
        total_timeout: Seconds for a whole download.
        memory: What downloads and uploads of all requests share.

    Raises:
        ValueError: A root is not a folder.
    """

    allowed_local_roots: tuple[Path, ...] = ()
    max_bytes: int = 512 << 20
    max_total_bytes: int = 1 << 30
    allowed_hosts: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()
    http: bool = True
    read_timeout: float = 10.0
    total_timeout: float = 120.0
    memory: MediaMemory = field(default_factory=lambda: MediaMemory(4 << 30), compare=False)

    @classmethod
    def of(cls, settings: PreprocessingSettings) -> MediaPolicy:
        """What the server was started with."""
        return cls(
            allowed_local_roots=settings.allowed_local_media_path,
            max_bytes=settings.max_media_bytes,
            max_total_bytes=settings.max_request_media_bytes,
            allowed_hosts=settings.allowed_media_domains,
            private_hosts=settings.allow_private_media_host,
            http=settings.http_media,
            read_timeout=settings.media_read_timeout,
            total_timeout=settings.media_timeout,
            memory=MediaMemory(settings.media_memory_mb << 20),
        )

    def __post_init__(self) -> None:
        roots = tuple(Path(root).resolve() for root in self.allowed_local_roots)
        for root in roots:
            if not root.is_dir():
                raise ValueError(f"allowed local media path {root} is not a folder")
        object.__setattr__(self, "allowed_local_roots", roots)
        object.__setattr__(self, "allowed_hosts", tuple(map(_plain_host, self.allowed_hosts)))
        object.__setattr__(self, "private_hosts", tuple(map(_plain_host, self.private_hosts)))

    def takes_host(self, host: str) -> bool:
        """Whether a host may be fetched from, by its name."""
        return not self.allowed_hosts or _plain_host(host) in self.allowed_hosts or self.takes_private(host)

    def takes_private(self, host: str) -> bool:
        """Whether a host may have private or loopback addresses."""
        return _plain_host(host) in self.private_hosts


def _plain_host(host: str) -> str:
    """One spelling of a host: ``MinIO.Example.`` is ``minio.example``, ``[::1]`` is ``::1``, ``bücher.example`` is punycode."""
    plain = host.lower().rstrip(".").strip("[]")
    try:
        return plain.encode("idna").decode()
    except UnicodeError:
        return plain
