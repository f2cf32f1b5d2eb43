"""The engine behind ``server/backends/tensorrtllm``: continuous batching with prompt-table embeddings."""

from ._engine import Engine, EngineFigures, Sink, fault_text
from ._generation import Output
from ._heartbeat import Heartbeat
from ._load import load_engine
from .grammar import Guide, GuideType
from .request import GenerationRequest, RefusedRequestError, parse_request
from .sampling_params import SamplingParams
from .vllm import VllmOptions

__all__ = [
    "Engine",
    "EngineFigures",
    "GenerationRequest",
    "Guide",
    "GuideType",
    "Heartbeat",
    "Output",
    "RefusedRequestError",
    "SamplingParams",
    "Sink",
    "VllmOptions",
    "fault_text",
    "load_engine",
    "parse_request",
]
