"""What the Triton models of the chain share: bounded queue, workers, `stop` by request id, parameters. Needs Triton's stub."""

from ._meter import TritonMeter
from ._parameters import parameters
from ._pool import Job, WorkerPool
from ._stub import keep_loaded, prepare_process

__all__ = ["Job", "TritonMeter", "WorkerPool", "keep_loaded", "parameters", "prepare_process"]
