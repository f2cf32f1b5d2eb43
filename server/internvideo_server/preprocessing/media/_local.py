"""``file://`` URLs: only regular files under the allowed roots."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from internvideo_server.errors import ErrorCode, ServingError, invalid, short_of

from ._digest import Identity
from ._media import Media, check_size
from ._policy import MediaPolicy

_CHUNK = 4 << 20


def open_file_url(url: str, policy: MediaPolicy, param: str | None) -> Media:
    """Open the file that a ``file://`` URL names.

    The check and the use are of the same object: it is opened as a mere handle (``O_PATH``: no side effects, whatever it
    is), the *handle's* real path is checked, and that very handle is then opened for reading. So neither ``..``, symlinks
    nor a folder swapped at the right moment lead outside. Whether a path outside exists is not told.

    Raises:
        ServingError: INVALID_ARGUMENT, PERMISSION_DENIED (outside the roots, or unreadable) or NOT_FOUND.
        OSError: This process may open no more files.
    """
    path = _path_of(url, param)
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        _require_allowed(_real_path(path), policy, param)
        if short_of(error):
            raise
        if isinstance(error, PermissionError):
            text = "the server may not read this file: change its permissions"
            raise ServingError(ErrorCode.PERMISSION_DENIED, text, param) from None
        text = "there is no such file on the server: check the path, or send the file itself"
        raise ServingError(ErrorCode.NOT_FOUND, text, param) from None
    try:
        _require_allowed(os.readlink(f"/proc/self/fd/{handle}"), policy, param)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise invalid("the URL does not name a regular file: give the path of a file", param)
        check_size(status.st_size, policy, param)
        try:
            medium = Media(os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if short_of(error):
                raise
            text = "the server may not read this file: change its permissions"
            raise ServingError(ErrorCode.PERMISSION_DENIED, text, param) from None
    finally:
        os.close(handle)
    return medium if Identity.of(medium.fd).settled else _copy(medium, policy, param)


def _copy(medium: Media, policy: MediaPolicy, param: str | None) -> Media:
    """What a file holds that was written just now: it may be written again unnoticed, its copy may not, so caches can know it."""
    with medium:
        return Media.from_chunks(iter(partial(_read, medium.fd, count()), b""), policy, param)


def _read(fd: int, chunks: Iterator[int]) -> bytes:
    return os.pread(fd, _CHUNK, _CHUNK * next(chunks))


def _path_of(url: str, param: str | None) -> str:
    try:
        parts = urlsplit(url)
        # UTF-8, whatever this process takes for its file names: in Triton's stub that is ASCII.
        path = os.fsdecode(unquote_to_bytes(parts.path))
    except ValueError:
        raise invalid("the file URL is malformed: write file:///folder/video.mp4", param) from None
    if parts.netloc not in ("", "localhost"):
        raise invalid(f"a file URL names a path of the server: file:///path, without the host {parts.netloc!r}", param)
    if parts.query or parts.fragment:
        raise invalid("a file URL has no '?' or '#'; write them as %3F and %23 if they are part of the file name", param)
    if not path.startswith("/") or "\0" in path:
        raise invalid("a file URL must name an absolute path: file:///folder/video.mp4", param)
    return path


def _real_path(path: str) -> str:
    """Where a path leads; one whose links may not be followed (``/proc/1/cwd``) leads nowhere that is allowed."""
    try:
        return os.path.realpath(path)
    except OSError:
        return ""


def _require_allowed(real_path: str, policy: MediaPolicy, param: str | None) -> None:
    if not any(Path(real_path).is_relative_to(root) for root in policy.allowed_local_roots):
        raise ServingError(
            ErrorCode.PERMISSION_DENIED,
            "this path is outside the folders that the server may read (option --allowed-local-media-path)",
            param,
        )
