"""The part of OpenAI's chat completions that this server speaks.

Unknown fields are tolerated (clients send many); fields that would change the answer and are not supported are refused.
What stands inside ``messages`` is judged by the server's preprocessing model, which names the place of a fault.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

#: Largest request body by default; a video in a ``data:`` URL takes 4/3 of its size.
MAX_BODY_BYTES = 256 * 1024 * 1024

StopStrings = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=256)]],
    Field(max_length=16),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]


def _asks_for_nothing(value: Any) -> Any:
    if value:
        raise ValueError("not supported by this server: leave it out")
    return value


NotSupported = Annotated[Any, AfterValidator(_asks_for_nothing)]


class StreamOptions(BaseModel):
    """``stream_options``."""

    include_usage: bool | None = None


class ChatCompletionRequest(BaseModel):
    """Body of ``POST /v1/chat/completions``. ``null`` means absent for every optional field."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    temperature: float | None = Field(None, ge=0, le=2, description="absent or 0: greedy")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="0 or -1: all tokens")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)  # a smaller one makes scores infinite
    min_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    stop: StopStrings | None = None
    logprobs: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Known to OpenAI or to vLLM and SGLang, and not to this server: only values that ask for nothing are accepted.
    n: Literal[1] | None = None
    best_of: Literal[1] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: NotSupported = None
    functions: NotSupported = None
    audio: NotSupported = None
    logit_bias: NotSupported = None
    top_logprobs: NotSupported = None
    prompt_logprobs: NotSupported = None
    min_p: NotSupported = None
    bad_words: NotSupported = None
    stop_token_ids: NotSupported = None
    include_stop_str_in_output: NotSupported = None
    ignore_eos: NotSupported = None
    use_beam_search: NotSupported = None
    echo: NotSupported = None
    continue_final_message: NotSupported = None
    structured_outputs: NotSupported = None
    guided_json: NotSupported = None
    guided_regex: NotSupported = None
    guided_choice: NotSupported = None
    guided_grammar: NotSupported = None
    regex: NotSupported = None
    ebnf: NotSupported = None
    mm_processor_kwargs: NotSupported = Field(None, description="of a video: num_frames or fps inside video_url")
    media_io_kwargs: NotSupported = Field(None, description="likewise")
    response_format: dict[str, Any] | None = None

    @field_validator("response_format")
    @classmethod
    def _only_text(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value.get("type") != "text":
            raise ValueError('only {"type": "text"} is supported')
        return value

    @field_validator("stream_options")
    @classmethod
    def _only_in_streams(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("allowed only with stream: true")
        return value

    @property
    def token_limit(self) -> int | None:
        """The limit of the answer's length that is asked for, by its new or its old name."""
        return self.max_completion_tokens or self.max_tokens


class Usage(BaseModel):
    """Token counts, the prompt's with the visual tokens (16 a frame), and where the time went (``adapter/_timings.py``)."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    internvideo: dict[str, int | float] = {}


class TokenLogprob(BaseModel):
    """Log probability of one generated token."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []


class ChoiceLogprobs(BaseModel):
    """``logprobs`` of a choice."""

    content: list[TokenLogprob]


FinishReason = Literal["stop", "length"]


class Message(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one choice of a plain answer."""

    index: int = 0
    message: Message
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """A plain answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """What one chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The choice of a chunk."""

    index: int = 0
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
