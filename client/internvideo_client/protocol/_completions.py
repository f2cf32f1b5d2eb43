"""``POST /v1/completions``: text without the chat template."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from ._common import GenerationFields, TokenId

MAX_PROMPTS = 16

# Wrong in the first of 100,000 items is wrong: to list all the faults would take seconds.
Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


def _checked_prompt(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """In place of the faults by each of the forms that it does not have, of which the first would be told."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError(f"must be a text, token ids, or a list of 1 to {MAX_PROMPTS} of these") from None


class CompletionRequest(GenerationFields):
    """Body of ``POST /v1/completions``."""

    prompt: Annotated[
        str | Ids | Annotated[list[str | Ids], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)],
        WrapValidator(_checked_prompt),
    ]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    add_special_tokens: bool | None = Field(None, description="of a text; true by default: begin with <s>")

    @property
    def token_limit(self) -> int:
        """OpenAI's default of 16."""
        return self.max_tokens or 16

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [each for each in self.prompt if isinstance(each, int)]
        return [ids] if ids else [each for each in self.prompt if not isinstance(each, int)]
