"""A network connection that is read for as long as somebody waits for what it brings."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import httpcore2

from internvideo_server.errors import ErrorCode, ServingError


class WatchedStream(httpcore2.NetworkStream):
    """A stream whose reading ends once ``left`` is set.

    Timeouts bound each read alone: a host that sends its headers one byte at a time could keep a connection for days.
    """

    def __init__(self, stream: httpcore2.NetworkStream, left: threading.Event) -> None:
        self._stream, self._left = stream, left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See httpcore.

        Raises:
            ServingError: CANCELLED.
        """
        if self._left.is_set():
            raise ServingError(ErrorCode.CANCELLED, "nobody waits for the download any more")
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See httpcore."""
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        """See httpcore."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """See httpcore."""
        return WatchedStream(self._stream.start_tls(ssl_context, server_hostname, timeout), self._left)

    def get_extra_info(self, info: str) -> Any:
        """See httpcore."""
        return self._stream.get_extra_info(info)
