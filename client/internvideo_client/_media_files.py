"""Media of a request on their way to the model `preprocessing`: small ones within the message, large ones as files that it opens.

A message is copied on the way, once by gRPC while nothing else of this process runs: a quarter of a second for 200 MB, in which
every stream stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._wire import with_files, with_media
from .state import MEDIA_PREFIX

_LARGE = 4 << 20  # bytes of a request's media, from which on they are files
_BATCH = 256  # pieces that are written by one call; the system takes 1024 at most

_log = logging.getLogger(__name__)


class SentMedia:
    """The media of one request. `close` it when preprocessing has opened them.

    Args:
        media: Each in pieces; those that were written to a file are let go.
        folder: That preprocessing may open files of; None: they are sent.
    """

    def __init__(self, media: Sequence[list[bytes]], folder: Path | None) -> None:
        self._media = media
        self._folder = folder
        self._paths: list[Path] = []
        self._closed = False

    async def payload(self, request: Any) -> Any:
        """What to send.

        Args:
            request: A ModelInferRequest without media; it stays as it is.
        """
        if not self._media:
            return request
        if self._folder is not None and not self._paths and sum(len(p) for pieces in self._media for p in pieces) >= _LARGE:
            try:
                await asyncio.to_thread(self._write, self._folder)
            except OSError as error:
                _log.warning("large media are sent in messages, for they cannot be written: %s", error)
        if self._paths:
            return with_files(request, [path.as_uri() for path in self._paths])
        return await asyncio.to_thread(with_media, request, self._media)

    def close(self) -> None:
        """Let them go. Closing twice is fine."""
        self._media, self._closed = (), True
        if self._paths:  # to remove a large file takes a while
            asyncio.get_running_loop().run_in_executor(None, self._remove)

    def _write(self, folder: Path) -> None:
        media = self._media
        try:
            for pieces in media:
                path = folder.resolve() / f"{MEDIA_PREFIX}{secrets.token_hex(16)}"
                self._paths.append(path)
                with open(path, "xb", buffering=0, opener=_private) as file:
                    for start in range(0, len(pieces), _BATCH):
                        _write_all(file.fileno(), pieces[start : start + _BATCH])
        except OSError:
            self._remove()
            self._paths = []
            raise
        for pieces in media:
            pieces.clear()
        if self._closed:  # its client left meanwhile
            self._remove()

    def _remove(self) -> None:
        for path in self._paths:
            with contextlib.suppress(OSError):  # with the run's folder
                path.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_all(fd: int, pieces: list[bytes]) -> None:
    """``os.writev`` until everything is written."""
    written = os.writev(fd, pieces)
    for piece in pieces:
        rest = piece[written:] if written < len(piece) else b""
        written = max(0, written - len(piece))
        while rest:
            rest = rest[os.write(fd, rest) :]
