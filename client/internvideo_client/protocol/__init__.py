"""Requests as the OpenAI API and vLLM write them, checked: a field that would change the answer works or is refused."""

from ._chat import ChatCompletionRequest, StreamOptions
from ._check import model_of
from ._common import Fields, GenerationFields, TokenId, check_sequences
from ._completions import CompletionRequest
from ._responses import ResponsesRequest
from ._structured import JsonSchemaFormat, NamedTool, StructuredOutputs, Tool

__all__ = [
    "ChatCompletionRequest",
    "CompletionRequest",
    "Fields",
    "GenerationFields",
    "JsonSchemaFormat",
    "NamedTool",
    "ResponsesRequest",
    "StreamOptions",
    "StructuredOutputs",
    "TokenId",
    "Tool",
    "check_sequences",
    "model_of",
]
