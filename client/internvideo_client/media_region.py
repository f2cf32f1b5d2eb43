"""Local files in POSIX shared memory, for a Triton on the same machine."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

_SHM = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies on Linux


class MediaRegion:
    """Files one after another in a segment of this user alone; a context manager that removes it.

    Args:
        files: At least one of them with content.

    Raises:
        OSError: A file cannot be read, or shared memory is full.

    Attributes:
        name: Unique.
        key: As ``shm_open`` takes it.
        sizes: Bytes of each file.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.name = f"internvideo_media_{uuid.uuid4().hex}"
        self.key = f"/{self.name}"
        self.sizes: list[int] = []
        segment = os.open(_SHM / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for file in files:
                with file.open("rb") as source:
                    size, copied = os.fstat(source.fileno()).st_size, 0
                    if size:  # reserved first: a full memory is an error here, and no SIGBUS in whoever reads it
                        os.posix_fallocate(segment, sum(self.sizes), size)
                    os.lseek(segment, sum(self.sizes), os.SEEK_SET)
                    while copied < size and (step := os.sendfile(segment, source.fileno(), copied, size - copied)):
                        copied += step
                    self.sizes.append(copied)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(segment)

    def __enter__(self) -> MediaRegion:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it; who has mapped it keeps it until they are done."""
        (_SHM / self.name).unlink(missing_ok=True)
