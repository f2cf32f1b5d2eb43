"""``POST /v1/chat/completions``. What stands inside ``messages`` is judged by the model `preprocessing`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ._common import MAX_TOP_LOGPROBS, GenerationFields, StreamOptions, TokenLimit
from ._structured import NamedTool, Tool

__all__ = ["ChatCompletionRequest", "StreamOptions"]


class ChatCompletionRequest(GenerationFields):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    return_tokens_as_token_ids: bool | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="one call at most is made")
    echo: bool | None = Field(None, description="refused where it is true")
    return_frames_info: bool | None = Field(
        None,
        description="of each medium the frames that were sampled and their seconds: streams have their usage too",
    )
    media_io_kwargs: dict[str, Any] | None = Field(None, description='vLLM\'s: {"video": {"num_frames": 16}}, or fps')
    mm_processor_kwargs: dict[str, Any] | None = Field(None, description='vLLM\'s: {"num_frames": 16}, or fps')

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.echo:
            raise ValueError("echo is not supported by this server: leave it out")
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        names = [tool.function.name for tool in self.tools or []]
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice asks for a call, but there are no tools")
        if named is not None and named not in names:
            raise ValueError("tool_choice names a function that is not among the tools")
        return self

    @property
    def token_limit(self) -> int | None:
        """The limit of the answer's length that is asked for, by its new or its old name."""
        return self.max_completion_tokens or self.max_tokens
