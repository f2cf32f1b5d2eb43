"""Client side of the InternVideo2.5 server: ``VideoChat``, Triton client, OpenAI adapter, page, command line. No torch."""

from .errors import ApiError
from .http_chat import media_part
from .triton import Generation, SamplingParams, TokenBatch, TritonChatClient
from .video_chat import AsyncVideoChat, ChatAnswer, VideoChat

__all__ = [
    "ApiError",
    "AsyncVideoChat",
    "ChatAnswer",
    "Generation",
    "SamplingParams",
    "TokenBatch",
    "TritonChatClient",
    "VideoChat",
    "media_part",
]
