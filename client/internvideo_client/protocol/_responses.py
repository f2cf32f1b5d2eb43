"""``POST /v1/responses``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ._common import Fields, TokenLimit

_AS_IN_CHAT = "vLLM's, as in chat"


class TextFormat(Fields):
    """``text.format``."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "response"
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Fields):
    """``text``."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class FunctionTool(Fields):
    """One of ``tools``: a function, with its fields beside the type."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128, pattern=r"^[\w.:-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(Fields):
    """``tool_choice`` that names a function."""

    type: Literal["function"]
    name: str


class ResponsesRequest(Fields):
    """Body of ``POST /v1/responses``."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = Field(None, max_length=128)
    max_output_tokens: TokenLimit | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    store: bool | None = None
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    include: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="message.output_text.logprobs; others are accepted, there is nothing to tell"
    )
    metadata: dict[str, Any] | None = None
    user: str | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    cache_salt: str | None = Field(None, min_length=1, max_length=256)
    top_k: Any = Field(None, description=_AS_IN_CHAT)
    min_p: Any = Field(None, description=_AS_IN_CHAT)
    presence_penalty: Any = Field(None, description=_AS_IN_CHAT)
    frequency_penalty: Any = Field(None, description=_AS_IN_CHAT)
    repetition_penalty: Any = Field(None, description=_AS_IN_CHAT)
    logit_bias: Any = Field(None, description=_AS_IN_CHAT)
    allowed_token_ids: Any = Field(None, description=_AS_IN_CHAT)
    bad_words: Any = Field(None, description=_AS_IN_CHAT)
    min_tokens: Any = Field(None, description=_AS_IN_CHAT)
    stop: Any = Field(None, description=_AS_IN_CHAT)
    stop_token_ids: Any = Field(None, description=_AS_IN_CHAT)
    include_stop_str_in_output: Any = Field(None, description=_AS_IN_CHAT)
    ignore_eos: Any = Field(None, description=_AS_IN_CHAT)
    skip_special_tokens: Any = Field(None, description=_AS_IN_CHAT)
    structured_outputs: Any = Field(None, description=_AS_IN_CHAT)
    media_io_kwargs: Any = Field(None, description=_AS_IN_CHAT)
    mm_processor_kwargs: Any = Field(None, description=_AS_IN_CHAT)

    @property
    def as_in_chat(self) -> dict[str, Any]:
        """The fields of vLLM that chat has by the same names."""
        names = [name for name, field in type(self).model_fields.items() if field.description == _AS_IN_CHAT]
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def told_logprobs(self) -> int | None:
        """Likeliest tokens to tell with each; None: no log probabilities."""
        asked = "message.output_text.logprobs" in (self.include or ())
        return self.top_logprobs or 0 if asked or self.top_logprobs else None
