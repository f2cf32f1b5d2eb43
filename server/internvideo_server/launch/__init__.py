"""Start the whole system on one host: find tritonserver, check the host, render the repository, start, watch and stop."""

from ._errors import LaunchError
from ._options import ServeOptions
from ._serve import RunningServer, serve, start
from ._tritonserver import TritonServer, find_tritonserver

__all__ = ["LaunchError", "RunningServer", "ServeOptions", "TritonServer", "find_tritonserver", "serve", "start"]
