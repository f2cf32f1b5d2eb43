"""Getting media: policy, ``file://``, ``http(s)://`` and ``data:`` URLs, always as an open file without a name."""

from ._digest import Digests, Identity
from ._fetch import fetch
from ._media import Media
from ._policy import MediaPolicy

__all__ = ["Digests", "Identity", "Media", "MediaPolicy", "fetch"]
