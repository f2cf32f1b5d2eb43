"""``data:`` URLs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from urllib.parse import unquote

from internvideo_server.errors import invalid
from internvideo_server.media._media import Media, check_size
from internvideo_server.media._policy import MediaPolicy

_CHUNK = 1 << 20  # characters decoded at once, a multiple of 4: keeps one copy of a large upload, not three


def decode_data_url(url: str, policy: MediaPolicy, param: str | None) -> Media:
    """Decode ``data:<type>;base64,<content>``. The declared type is not believed, so it does not matter.

    Raises:
        ServingError: INVALID_ARGUMENT: no base64, broken base64, empty or too large.
    """
    head, comma, content = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise invalid("a data URL must be data:video/mp4;base64,CONTENT", param)
    if "%" in content:  # '+', '/' and '=' may come percent-encoded
        content = unquote(content)
    check_size(len(content) // 4 * 3 - 2, policy, param, complete=False)
    try:
        return Media.from_chunks(_decode(content), policy, param)
    except ValueError:  # binascii.Error, or characters beyond ASCII
        raise invalid("the data URL's content is no valid base64", param) from None


def _decode(content: str) -> Iterator[bytes]:
    padding = content.find("=")
    if 0 <= padding < len(content) - 2:
        raise binascii.Error("padding in the middle")
    for start in range(0, len(content), _CHUNK):
        yield base64.b64decode(content[start : start + _CHUNK], validate=True)
