"""Several complete servers on one host, each on GPUs of its own, with the router before them: ``serve --replicas``."""

from ._group import serve
from ._plan import Member, count_of, members_of, router_of

__all__ = ["Member", "count_of", "members_of", "router_of", "serve"]
