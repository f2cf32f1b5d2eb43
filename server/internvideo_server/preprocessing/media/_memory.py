"""How much media the server holds in memory at once, for all requests together."""

from __future__ import annotations

import threading

from internvideo_server.errors import ErrorCode, ServingError


class MediaMemory:
    """A number of bytes that media share; what finds none left is refused, so nothing waits for it. Thread-safe.

    Args:
        most: Bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Use some of it.

        Raises:
            ServingError: RESOURCE_EXHAUSTED: there is not so much left.
        """
        with self._lock:
            if self._held + size > self._most:
                text = f"the server holds as much media as it may ({self._most >> 20} MiB); try again later"
                raise ServingError(ErrorCode.RESOURCE_EXHAUSTED, text)
            self._held += size

    def give_back(self, size: int) -> None:
        """Use it no more."""
        with self._lock:
            self._held -= size
