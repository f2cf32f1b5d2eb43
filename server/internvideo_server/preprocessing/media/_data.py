"""``data:`` URLs."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from urllib.parse import unquote

from internvideo_server.errors import invalid
from internvideo_server.preprocessing.frame_list import packed

from ._media import Media, check_size
from ._policy import MediaPolicy

_MARK, _MOST_HEAD = re.compile(r"; *base64 *,"), 1024
_FRAME_LISTS = ("video/jpeg", "video/png")
_MOST_PICTURES = 1 << 16  # three quarters of an hour of all frames
_CHUNK = 1 << 20  # characters decoded at once, a multiple of 4: keeps one copy of a large upload, not three


def decode_data_url(url: str, policy: MediaPolicy, param: str | None) -> Media:
    """Decode ``data:<type>;base64,<content>``. The declared type is not believed, so it does not matter.

    Base64 may have line breaks, lack its padding and use the URL alphabet. Several contents with commas between them are the
    frames of one video, as vLLM sends them with the type ``video/jpeg``.

    Raises:
        ServingError: INVALID_ARGUMENT: no base64, broken base64, empty or too large.
    """
    mark = _MARK.search(url[:_MOST_HEAD].lower())  # the parameters in front of it may have commas (codecs=vp8,opus)
    if mark is None:
        raise invalid("a data URL must be data:video/mp4;base64,CONTENT: encode the content in base64", param)
    head, content = url[: mark.start()], _plain(url[mark.end() :]).rstrip(",")
    check_size(len(content) // 4 * 3 - 2, policy, param, complete=False)
    if content.count(",") >= _MOST_PICTURES:
        raise invalid(f"the data URL has more than {_MOST_PICTURES} pictures: send fewer frames", param)
    pictures = content.split(",")
    is_list = len(pictures) > 1 or head[len("data:") :].partition(";")[0].strip().lower() in _FRAME_LISTS
    try:
        if not is_list:
            return Media.from_chunks(_decoded(content), policy, param)
        contents = (b"".join(_decoded(picture)) for picture in pictures if picture)
        return Media.from_chunks(packed(contents), policy, param)
    except ValueError:  # binascii.Error, or characters beyond ASCII
        raise invalid("the data URL's content is not valid base64: encode the whole file again", param) from None


def _plain(content: str) -> str:
    if "%" in content:  # '+', '/', '=' and ',' may come percent-encoded
        content = unquote(content)
    if any(each in content for each in " \t\r\n"):
        content = "".join(content.split())
    return content.replace("-", "+").replace("_", "/")


def _decoded(content: str) -> Iterator[bytes]:
    content = content.rstrip("=") if len(content) - len(content.rstrip("=")) <= 2 else content
    if "=" in content:
        raise binascii.Error("padding in the middle")
    content += "=" * (-len(content) % 4)
    for start in range(0, len(content), _CHUNK):
        yield base64.b64decode(content[start : start + _CHUNK], validate=True)
