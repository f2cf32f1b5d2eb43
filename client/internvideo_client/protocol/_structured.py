"""Structured output: ``response_format``, vLLM's ``structured_outputs`` and ``guided_*``, tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ._refused import asks

MAX_CHOICES = 1000


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, populate_by_name=True)


class JsonSchemaFormat(_Part):
    """``response_format.json_schema``."""

    name: str = "response"
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(_Part):
    """``response_format``; without a type: text."""

    type: Literal["text", "json_object", "json_schema"] | None = None
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="of type json_object, as other servers have it")

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise ValueError("json_schema.schema is missing")
        if self.type != "json_schema" and self.json_schema is not None:
            raise ValueError('json_schema goes with type "json_schema"')
        if self.type != "json_object" and self.schema_ is not None:
            raise ValueError('schema goes with type "json_object"; of a "json_schema" it stands in json_schema')
        return self


class StructuredOutputs(BaseModel):
    """vLLM's ``structured_outputs``: exactly one."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)  # another one would be lost in silence

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_fallback: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _asked(cls, given: Any) -> Any:
        # vLLM's own client writes all of its fields, those too that ask for nothing. Every schema asks for something: JSON.
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if asks(value) or (name == "json" and isinstance(value, dict))}

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        given = [self.json_, self.regex, self.choice, self.grammar, self.json_object or None]
        if sum(each is not None for each in given) > 1:
            raise ValueError("give one of json, json_object, regex, choice and grammar")
        return self


class ToolFunction(_Part):
    """``tools[].function``."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\w.:-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Part):
    """One of ``tools``."""

    type: Literal["function"] = "function"
    function: ToolFunction


class NamedFunction(_Part):
    """``tool_choice.function``."""

    name: str


class NamedTool(_Part):
    """``tool_choice`` that names a function."""

    type: Literal["function"] = "function"
    function: NamedFunction
