"""How many bytes of bodies are held at once, by everybody together."""

from __future__ import annotations

from internvideo_client.errors import ApiError


class BytesInFlight:
    """A budget of bytes.

    Args:
        limit: Of all requests together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """Hold so many more.

        Raises:
            ApiError: 503: there is no room for them now.
        """
        if self.held and self.held + size > self._limit:
            raise ApiError(503, "the server holds as many bytes of requests as it may: try again in a moment", None, "busy", 2)
        self.held += size

    def give(self, size: int) -> None:
        """They are let go."""
        self.held -= size
