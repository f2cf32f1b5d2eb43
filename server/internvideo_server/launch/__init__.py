"""Start the whole system on one host: find tritonserver, check the host, render the repository, start, watch and stop."""

from ._artifacts import project_home
from ._backends import build_backends
from ._commands import ADAPTER_ENVIRONMENT
from ._detach import detach
from ._device import Device, resolve_device
from ._engine_cache import CachedEngine, cached_engines, clear_engines
from ._errors import LaunchError
from ._length import settle_length
from ._ports import resolve_ports
from ._registry import RunRecord, living_runs
from ._repository import RunPlan, read_config, render_repository
from ._running import RunningServer
from ._secret import TritonSecret
from ._serve import start
from ._status import RunStatus, chosen, end, statuses
from ._tritonserver import TritonServer, find_tritonserver
from .replicas import serve

__all__ = [
    "ADAPTER_ENVIRONMENT",
    "CachedEngine",
    "Device",
    "LaunchError",
    "RunPlan",
    "RunRecord",
    "RunStatus",
    "RunningServer",
    "TritonSecret",
    "TritonServer",
    "build_backends",
    "cached_engines",
    "chosen",
    "clear_engines",
    "detach",
    "end",
    "find_tritonserver",
    "living_runs",
    "project_home",
    "read_config",
    "render_repository",
    "resolve_device",
    "resolve_ports",
    "serve",
    "settle_length",
    "start",
    "statuses",
]
