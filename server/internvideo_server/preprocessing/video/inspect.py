"""What frames a file has, without decoding it: for benchmarks and for people. A server does this in a decoder's process."""

from __future__ import annotations

from pathlib import Path

from ._frames import open_reader
from ._request import DecodeLimits
from ._sniff import HEAD_BYTES
from ._timeline import Timeline


def timeline_of(path: str, limits: DecodeLimits | None = None) -> Timeline:
    """The frames of a video and when they are shown.

    Args:
        path: A file that is trusted: nothing is closed around this process.
        limits: Of what is read.

    Raises:
        ServingError: INVALID_ARGUMENT: it is not a video that can be read.
    """
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    return open_reader(path, head, limits or DecodeLimits(), 1).timeline
