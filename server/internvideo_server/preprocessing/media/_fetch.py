"""One door for every kind of media URL."""

from __future__ import annotations

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError, invalid

from ._data import decode_data_url
from ._local import open_file_url
from ._media import Media
from ._policy import MediaPolicy

_LONGEST_URL = 16_384  # longer than any path or signed address; to look at millions of characters takes minutes


def fetch(url: str, policy: MediaPolicy, param: str | None = None, deadline: Deadline | None = None) -> Media:
    """Get the bytes behind a URL as an open file.

    Args:
        url: ``file:///path``, ``http://``, ``https://`` or ``data:...;base64,``.
        policy: What the operator allows.
        param: The request field to name in errors (``messages.0.content.1.video_url.url``).
        deadline: Ends the fetch early; without one only the policy's timeouts do.

    Returns:
        The medium; the caller closes it.

    Raises:
        ServingError: INVALID_ARGUMENT (malformed, too large, empty, another scheme), PERMISSION_DENIED (path or host that is not
            allowed), NOT_FOUND, UNAVAILABLE (the remote host fails), DEADLINE_EXCEEDED or CANCELLED.
    """
    deadline = deadline or Deadline()
    deadline.check("fetching the media")
    scheme = url[:8].lower().partition(":")[0]
    if scheme != "data" and len(url) > _LONGEST_URL:
        raise invalid(f"the URL has more than {_LONGEST_URL} characters: give a shorter one", param)
    if scheme == "file":
        return open_file_url(url, policy, param)
    if scheme == "data":
        return decode_data_url(url, policy, param)
    if scheme in ("http", "https"):
        if not policy.http:
            text = "this server does not fetch http(s) URLs (option --no-http-media): send the file itself"
            raise ServingError(ErrorCode.PERMISSION_DENIED, text, param)
        from ._http import download  # a third of a decoder process's start, which never needs it

        return download(url, policy, param, deadline)
    raise invalid("this URL is not supported: use file:///path, http(s)://host/path or data:video/mp4;base64,...", param)
