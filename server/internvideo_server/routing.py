r"""Which replica a request goes to: one rule for the router, which is told it as HAProxy's expressions, and for this process.

1. What a replica keeps is asked of that replica: ids of files and responses carry its name (``file-NAME-...``,
   ``resp_NAME_...``). A key would not do: the ring moves keys when a replica joins, and an overloaded replica's go elsewhere.
2. Else requests with one key go to one replica, as long as it is not overloaded: there the video is decoded, embedded and in the
   KV cache already. The key is ``X-Session-Id``, where a client sends it, else the first medium of the body.

A medium is the first string under a name by which media are called, up to 4,000 bytes of it: of a ``data:`` URL that is the
beginning of the video. It is taken as it is written in JSON, but ``\/`` is ``/``. A quotation mark inside a text is escaped in
JSON, so that a text which looks like a medium is not taken for one.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

#: What a replica may be called: a DNS label.
NAME = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
SESSION_HEADER = "X-Session-Id"
#: Bytes of a body that are looked at.
LOOKED_AT = 64 << 10

_MEDIA = "url|video_url|image_url|video|image|input_video|input_image|file_url|file_data"
_HELD = r"([a-z0-9-]{1,63})"  # a name within an id
_RANDOM = "[0-9a-f]{32}"
#: Regular expressions as both PCRE and Python read them, without a character that HAProxy's configuration would take for its own.
MEDIUM = rf"\x22(?:{_MEDIA})\x22\s*:\s*\x22([^\x22]{{1,4000}})"
FILE = rf"\x22(?:file-id:)?file-{_HELD}-{_RANDOM}\x22"
EARLIER = rf"\x22previous_response_id\x22\s*:\s*\x22resp_{_HELD}_{_RANDOM}\x22"
PATH = rf"^/v1/(?:files/file-|responses/resp_){_HELD}[-_]{_RANDOM}(?:/|$)"


@dataclass(frozen=True)
class Route:
    """Where a request goes.

    Attributes:
        replica: Name of the one that alone has what is asked for; None: any may answer.
        key: Where on the ring, 16 hexadecimal digits, if ``replica`` is None; None: wherever there is room.
    """

    replica: str | None = None
    key: str | None = None


def route(path: str, body: bytes = b"", session: str = "") -> Route:
    """Where a request goes.

    Args:
        path: Of its URL.
        body: As it is sent, or its first `LOOKED_AT` bytes.
        session: Its ``X-Session-Id``.
    """
    if found := re.search(PATH, path):
        return Route(replica=found[1])
    for pattern in (EARLIER, FILE):
        if held := re.search(pattern.encode(), body):
            return Route(replica=held[1].decode())
    if session:
        return Route(key=_key(session.encode("utf-8", "surrogateescape")))
    medium = re.search(MEDIUM.encode(), body)
    return Route(key=_key(medium[1].replace(rb"\/", b"/"))) if medium else Route()


def new_file_id(replica: str | None) -> str:
    """An id that nobody can guess, which carries the name of the replica that keeps the file."""
    return f"file-{replica}-{secrets.token_hex(16)}" if replica else f"file-{secrets.token_hex(16)}"


def response_id(replica: str | None, random: str) -> str:
    """The id of a response; ``random``: 32 hexadecimal digits."""
    return f"resp_{replica}_{random}" if replica else f"resp_{random}"


def _key(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16].upper()
