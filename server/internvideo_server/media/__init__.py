"""Getting media: policy, ``file://``, ``http(s)://`` and ``data:`` URLs, always as an open file without a name."""

from internvideo_server.media._budget import POLL_SECONDS, Budget, Cancelled
from internvideo_server.media._digest import Digests, Identity
from internvideo_server.media._fetch import fetch
from internvideo_server.media._media import Media
from internvideo_server.media._policy import MediaPolicy

__all__ = ["POLL_SECONDS", "Budget", "Cancelled", "Digests", "Identity", "Media", "MediaPolicy", "fetch"]
