"""Check a host, a checkpoint and an engine before anything is started."""

from ._report import Check, Report, Status
from ._run import DoctorOptions, run
from ._shapes import check_shapes

__all__ = ["Check", "DoctorOptions", "Report", "Status", "check_shapes", "run"]
