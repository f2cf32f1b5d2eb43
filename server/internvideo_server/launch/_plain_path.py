"""A path that Triton can use for one that it cannot.

Triton 2.51 starts a Python model's process by a shell line in which paths are not quoted, and Python there takes only ASCII.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ._errors import LaunchError

_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_PLACES = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))  # noqa: S108 - a private directory is made there


@contextmanager
def plain_path(directory: Path, places: tuple[Path, ...] = _PLACES) -> Iterator[Path]:
    """``directory`` itself, or a link to it whose path has only letters, digits and ``@%+=:,./-_``; the link goes at the end.

    Raises:
        LaunchError: A link is needed, and there is no place for it.
    """
    if _PLAIN.fullmatch(str(directory)):
        yield directory
        return
    for place in places:
        try:
            private = Path(tempfile.mkdtemp(prefix="internvideo-link-", dir=place))
        except OSError:
            continue
        try:
            link = private / "run"
            link.symlink_to(directory, target_is_directory=True)
            yield link
        finally:
            shutil.rmtree(private, ignore_errors=True)
        return
    raise LaunchError(
        f"Triton cannot run from {directory} (spaces, or characters beyond ASCII), and {', '.join(map(str, places))} cannot be "
        "written for a link to it: name another --run-directory or TMPDIR"
    )
