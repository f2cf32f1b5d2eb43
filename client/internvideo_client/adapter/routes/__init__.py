"""The routes, each family a file."""

from ._models import Readiness
from ._routes import add_routes
from ._work import with_pace

__all__ = [
    "Readiness",
    "add_routes",
    "with_pace",
]
