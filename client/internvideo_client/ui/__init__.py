"""A web page for asking about videos, in front of any running server. Needs the extra ``ui``."""

from ._server import serve

__all__ = ["serve"]
