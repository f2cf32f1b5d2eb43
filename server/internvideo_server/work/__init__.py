"""What the Triton models of the chain share: bounded queue, workers, `stop` by request id, parameters. Needs Triton's stub."""

from ._locale import read_text_as_utf8
from ._meter import TritonMeter
from ._parameters import parameters
from ._pool import Job, WorkerPool

__all__ = ["Job", "TritonMeter", "WorkerPool", "parameters"]

read_text_as_utf8()
