"""The hash of a medium's content, by which caches know it."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass

from cachetools import LRUCache

from internvideo_server.deadline import Deadline

from ._media import Media

_CHUNK = 4 << 20
_ENTRIES = 4096
# A file that was written this shortly before may be written again without another time stamp (they are as coarse as a kernel
# tick, or 2 s on some file systems).
_SETTLED_NS = 3_000_000_000


@dataclass(frozen=True)
class Identity:
    """What a file looks like from outside. Content does not change under it, unless somebody sets times back."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, fd: int) -> Identity:
        """Of an open file."""
        status = os.fstat(fd)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def settled(self) -> bool:
        """Whether a later change would show."""
        return time.time_ns() - max(self.modified_ns, self.changed_ns) > _SETTLED_NS


class Digests:
    """SHA-256 of media; those of settled files are remembered, so that a known file is not read again. Thread-safe."""

    def __init__(self) -> None:
        self._known: LRUCache[Identity, bytes] = LRUCache(_ENTRIES)
        self._lock = threading.Lock()

    def digest(self, medium: Media, deadline: Deadline) -> bytes:
        """SHA-256 of the content, 32 bytes.

        Raises:
            ServingError: CANCELLED or DEADLINE_EXCEEDED.
        """
        identity = Identity.of(medium.fd)
        with self._lock:
            if (known := self._known.get(identity)) is not None:
                return known
        found = _sha256(medium, deadline)
        if identity.settled and Identity.of(medium.fd) == identity:
            with self._lock:
                self._known[identity] = found
        return found


def _sha256(medium: Media, deadline: Deadline) -> bytes:
    state, place = hashlib.sha256(), 0
    while chunk := os.pread(medium.fd, _CHUNK, place):
        deadline.check("reading the media")
        state.update(chunk)
        place += len(chunk)
    return state.digest()
