"""Look at a host, a checkpoint and an engine before a start, or at a running server; or start it all and see whether it works."""

from ._report import Check, Report, Status
from ._run import run
from ._self_test import self_test
from ._server import check_server
from ._shapes import check_shapes

__all__ = [
    "Check",
    "Report",
    "Status",
    "check_server",
    "check_shapes",
    "run",
    "self_test",
]
