"""What all requests share: how to generate, and who asks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from internvideo_client.errors import bad_request

from ._structured import ResponseFormat, StructuredOutputs

MAX_SEQUENCES = 16
MAX_TOP_LOGPROBS = 20
_INT32 = 2**31 - 1

Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopStrings = Annotated[
    list[Word],
    Field(max_length=16),
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=Word | Annotated[list[Word], Field(max_length=16)],
    ),
]
#: Of an answer's tokens; the engine counts in 32 bits, and more than is left of the context is cut down anyway.
TokenLimit = Annotated[int, Field(ge=1), AfterValidator(lambda limit: min(limit, _INT32))]
TokenId = Annotated[int, Field(ge=0, le=_INT32)]


class Fields(BaseModel):
    """Of a request: unknown ones are left alone, NaN and infinities are refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class StreamOptions(Fields):
    """``stream_options``."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationFields(Fields):
    """How to generate. ``null`` means absent for every optional field."""

    model: str
    max_tokens: TokenLimit | None = Field(None, description="more than what is left of the context is cut down to it")
    temperature: float | None = Field(None, ge=0, le=2, description="absent or 0: greedy")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=_INT32, description="0 or -1: all tokens")
    min_p: float | None = Field(None, ge=0, le=1, description="tokens less likely than this share of the likeliest are left out")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    n: int | None = Field(None, ge=1, le=MAX_SEQUENCES, description="answers, each with a seed of its own")
    best_of: int | None = Field(
        None, ge=1, le=MAX_SEQUENCES, description="generate so many, tell the n likeliest; not in streams"
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)  # a smaller one makes scores infinite
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, description="token id -> added logit")
    allowed_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(
        None, min_length=1, description="no other token is generated"
    )
    bad_words: list[Word] | None = Field(None, max_length=64)
    min_tokens: int | None = Field(None, ge=0, le=_INT32)
    stop: StopStrings | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=64)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = Field(None, ge=-1, le=MAX_TOP_LOGPROBS, description="refused: no engine tells them")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's: one of json, regex, choice, grammar")
    guided_json: dict[str, Any] | str | None = Field(None, description="older name of structured_outputs.json")
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    user: str | None = None
    request_id: str | None = Field(None, max_length=128, pattern=r"^[\w.:-]*$", description="as the header X-Request-Id")
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="cached videos are shared within one salt only"
    )

    @property
    def sequences(self) -> int:
        """Answers to generate."""
        return max(self.n or 1, self.best_of or 1)


def check_sequences(n: int | None, best_of: int | None, stream: bool | None) -> None:
    """``best_of`` against ``n`` and ``stream``.

    Raises:
        ApiError: They do not fit.
    """
    if best_of is not None and best_of < (n or 1):
        raise bad_request(f"best_of: must be at least n, which is {n or 1}", "best_of")
    if stream and best_of is not None and best_of > (n or 1):
        raise bad_request("best_of: the best answers are known at the end only: leave it out of a stream", "best_of")
