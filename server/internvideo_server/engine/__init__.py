"""The embedded engine behind ``server/backends/tensorrtllm``: continuous batching with prompt-table embeddings."""

from ._engine import Engine, Sink
from ._generation import Output
from ._request import GenerationRequest, RefusedRequestError, parse_request
from ._sampling import Sampling

__all__ = ["Engine", "GenerationRequest", "Output", "RefusedRequestError", "Sampling", "Sink", "parse_request"]
