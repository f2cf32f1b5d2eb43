"""One door for every kind of media URL."""

from __future__ import annotations

from internvideo_server.errors import invalid
from internvideo_server.media._budget import Budget
from internvideo_server.media._data import decode_data_url
from internvideo_server.media._local import open_file_url
from internvideo_server.media._media import Media
from internvideo_server.media._policy import MediaPolicy


def fetch(url: str, policy: MediaPolicy, param: str | None = None, budget: Budget | None = None) -> Media:
    """Get the bytes behind a URL as an open file.

    Args:
        url: ``file:///path``, ``http://``, ``https://`` or ``data:...;base64,``.
        policy: What the operator allows.
        param: The request field to name in errors (``messages.0.content.1.video_url.url``).
        budget: Ends the fetch early; without one only the policy's timeouts do.

    Returns:
        The medium; the caller closes it.

    Raises:
        ServingError: INVALID_ARGUMENT (malformed, too large, empty, another scheme), PERMISSION_DENIED (path or host that is not
            allowed), NOT_FOUND, UNAVAILABLE (the remote host fails), DEADLINE_EXCEEDED or CANCELLED.
    """
    budget = budget or Budget()
    budget.check("fetching the media")
    scheme = url[:8].lower().partition(":")[0]
    if scheme == "file":
        return open_file_url(url, policy, param)
    if scheme == "data":
        return decode_data_url(url, policy, param)
    if scheme in ("http", "https"):
        from internvideo_server.media._http import download  # a third of a decoder process's start, which never needs it

        return download(url, policy, param, budget)
    raise invalid("this URL is not supported: use file:///path, http(s)://host/path or data:video/mp4;base64,...", param)
