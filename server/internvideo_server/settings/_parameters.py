"""Settings as the string ``parameters`` of a Triton model's config.pbtxt, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from ._command_line import SettingsError, sentences

Model = TypeVar("Model", bound=BaseModel)


def to_parameters(settings: BaseModel) -> dict[str, str]:
    """Each field as a string: None is empty, a list is JSON."""
    return {name: _written(value) for name, value in settings.model_dump(mode="json").items()}


def from_parameters(model: type[Model], parameters: Mapping[str, str]) -> Model:
    """What :func:`to_parameters` wrote; a parameter that is absent has its default, one that is unknown is another's.

    Raises:
        SettingsError: A value is out of its bounds, or one without a default is missing.
    """
    known = {name: value for name, value in parameters.items() if name in model.model_fields}
    try:
        return model.model_validate({name: _read(model, name, value) for name, value in known.items() if value != ""})
    except ValidationError as error:
        raise SettingsError(sentences(error, model, lambda name: f"parameter {name}")) from None


def _written(value: Any) -> str:
    if value is None or value == []:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | bool) else str(value)


def _read(model: type[BaseModel], name: str, text: str) -> Any:
    if get_origin(model.model_fields[name].annotation) is not tuple:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text  # pydantic says that it is not a list
