"""``file://`` URLs: only regular files under the allowed roots."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from internvideo_server.errors import ErrorCode, ServingError, invalid
from internvideo_server.media._media import Media, check_size
from internvideo_server.media._policy import MediaPolicy


def open_file_url(url: str, policy: MediaPolicy, param: str | None) -> Media:
    """Open the file that a ``file://`` URL names.

    The check and the use are of the same object: it is opened as a mere handle (``O_PATH``: no side effects, whatever it
    is), the *handle's* real path is checked, and that very handle is then opened for reading. So neither ``..``, symlinks
    nor a folder swapped at the right moment lead outside. Whether a path outside exists is not told.

    Raises:
        ServingError: INVALID_ARGUMENT, PERMISSION_DENIED (outside the roots, or unreadable) or NOT_FOUND.
    """
    path = _path_of(url, param)
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        _require_allowed(os.path.realpath(path), policy, param)
        if isinstance(error, PermissionError):
            raise ServingError(ErrorCode.PERMISSION_DENIED, "the server may not read this file", param) from None
        raise ServingError(ErrorCode.NOT_FOUND, "there is no such file on the server", param) from None
    try:
        _require_allowed(os.readlink(f"/proc/self/fd/{handle}"), policy, param)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise invalid("the URL names no regular file", param)
        check_size(status.st_size, policy, param)
        try:
            return Media(os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            raise ServingError(ErrorCode.PERMISSION_DENIED, "the server may not read this file", param) from None
    finally:
        os.close(handle)


def _path_of(url: str, param: str | None) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise invalid("the file URL is malformed", param) from None
    if parts.netloc not in ("", "localhost"):
        raise invalid(f"a file URL names a path of the server: file:///path, without the host {parts.netloc!r}", param)
    if parts.query or parts.fragment:
        raise invalid("a file URL has no '?' or '#'; write them as %3F and %23 if they are part of the file name", param)
    try:
        path = os.fsdecode(unquote_to_bytes(parts.path))  # UTF-8 whatever Python takes file names for: in Triton's stub for ASCII
    except UnicodeEncodeError:
        raise invalid("the file URL is malformed", param) from None
    if not path.startswith("/") or "\0" in path:
        raise invalid("a file URL must name an absolute path: file:///folder/video.mp4", param)
    return path


def _require_allowed(real_path: str, policy: MediaPolicy, param: str | None) -> None:
    if not any(Path(real_path).is_relative_to(root) for root in policy.allowed_local_roots):
        raise ServingError(
            ErrorCode.PERMISSION_DENIED,
            "this path is outside the folders that the server may read (option --allowed-local-media-path)",
            param,
        )
