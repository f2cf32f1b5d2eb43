"""Client side of the InternVideo2.5 server: Triton client, OpenAI adapter, command line. It needs no torch."""

from ._errors import ApiError
from .triton import Generation, Sampling, TokenBatch, TritonChatClient

__all__ = ["ApiError", "Generation", "Sampling", "TokenBatch", "TritonChatClient"]
