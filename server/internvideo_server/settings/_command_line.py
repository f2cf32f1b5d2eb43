"""Command lines from settings: typer options for each field, and the arguments that say a model's values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Unit:
    """What a number counts, in the annotation of its field."""

    name: str


_VARIABLES = {"api_key": "INTERNVIDEO_API_KEYS"}  # several; one is what a client sends


class SettingsError(ValueError):
    """A setting is out of range; the message names the option and says what is right."""


def build(model: type[Model], values: Mapping[str, Any]) -> Model:
    """The model of these values; None stands for a value that was not given.

    Raises:
        SettingsError: In one line, for the person at the terminal.
    """
    try:
        return model.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(sentences(error, model, flag)) from None


def sentences(error: ValidationError, model: type[BaseModel], called: Callable[[str], str]) -> str:
    """What is wrong, in one line and without secrets; ``called``: how the reader calls a field."""
    secrets = {name for name, field in model.model_fields.items() if _plain(field.annotation)[0] is SecretStr}
    return "; ".join(_sentence(each, secrets, called) for each in error.errors())


def options_from(
    model: type[Model], only: Container[str] | None = None, **fixed: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a typer command whose first parameter is the settings: it gets an option for each field of the model.

    typer ignores pydantic's own bounds, so they are told to it; what it has no word for, the model refuses.

    Args:
        model: The settings.
        only: The fields that are options, where not all are.
        fixed: Values of others.
    """
    shown = [(name, panel) for name, panel in groups(model) if only is None or name in only]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        @functools.wraps(function)
        def command(*args: Any, **kwargs: Any) -> Any:
            values = {name: kwargs.pop(name) for name, _ in shown}
            try:
                settings = build(model, {**fixed, **values})
            except SettingsError as error:
                raise typer.BadParameter(str(error)) from None
            return function(settings, *args, **kwargs)

        parameters = [_option(name, model.model_fields[name], panel) for name, panel in shown]
        own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        command.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in (*parameters, *own)}
        return command

    return decorate


def arguments_of(settings: BaseModel) -> list[str]:
    """The command-line arguments that make the same settings in the environment of :func:`environment_of`."""
    return [text for name in type(settings).model_fields for text in _arguments(settings, name)]


def environment_of(settings: BaseModel, environ: Mapping[str, str]) -> dict[str, str]:
    """An environment that leaves the settings to their command line, but for secrets: other users can read a command line."""
    others = {name: value for name, value in environ.items() if name not in map(variable, type(settings).model_fields)}
    secrets = {variable(name): " ".join(_secrets(getattr(settings, name))) for name in type(settings).model_fields}
    return others | {name: value for name, value in secrets.items() if value}


def secrets_of(settings: BaseModel) -> list[str]:
    """The secrets among the settings."""
    return [secret for name in type(settings).model_fields for secret in _secrets(getattr(settings, name))]


def flag(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def variable(name: str) -> str:
    """The environment variable of a field."""
    return _VARIABLES.get(name, f"INTERNVIDEO_{name.upper()}")


def _arguments(settings: BaseModel, name: str) -> Iterator[str]:
    value = getattr(settings, name)
    if value is None or _secrets(value):
        return
    if isinstance(value, bool):
        yield flag(name) if value else f"--no-{flag(name)[2:]}"
        return
    for each in value if isinstance(value, tuple) else (value,):
        yield f"{flag(name)}={each}"


def _secrets(value: Any) -> list[str]:
    values = value if isinstance(value, tuple) else (value,)
    return [each.get_secret_value() for each in values if isinstance(each, SecretStr)]


def groups(model: type[BaseModel]) -> list[tuple[str, str]]:
    """Each field with the title of its group: that of the class which declares it."""
    own, *bases = model.__mro__
    owners = [(name, each) for each in (*bases, own) for name in inspect.get_annotations(each) if name in model.model_fields]
    titles = {name: str(getattr(each, "group", "Options")) for name, each in owners}
    order = list(dict.fromkeys(titles.values()))
    return sorted(titles.items(), key=lambda each: order.index(each[1]))


def limits_of(field: FieldInfo) -> tuple[float | None, float | None]:
    """The least and the largest value, where they are values themselves."""
    found = list(_metadata(field))
    lows, highs = ([value for each in found if (value := getattr(each, bound, None)) is not None] for bound in ("ge", "le"))
    return max(lows, default=None), min(highs, default=None)


def unit_of(field: FieldInfo) -> str | None:
    """What the field's number counts."""
    return next((each.name for each in _metadata(field) if isinstance(each, Unit)), None)


def shown_default(field: FieldInfo) -> str | None:
    """The words for a default that depends on the machine."""
    extra = field.json_schema_extra
    return str(extra["default_text"]) if isinstance(extra, dict) and "default_text" in extra else None


def _option(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    inner, optional, several = _plain(field.annotation)
    inner = str if inner is SecretStr else inner
    (low, high), shown, unit = limits_of(field), shown_default(field), unit_of(field)
    more: dict[str, Any] = {"min": low, "max": high} if inner in (int, float) else {}
    more |= {"show_default": shown} if shown else {}
    more |= {"metavar": unit.upper()} if unit else {}
    info = typer.Option(help=field.description, envvar=variable(name), rich_help_panel=panel, **more)
    kind: Any = list[inner] | None if several else inner | None if optional or shown else inner  # type: ignore[valid-type]
    if field.is_required():
        default: Any = inspect.Parameter.empty
    else:
        default = None if several or shown else field.get_default(call_default_factory=True)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _metadata(field: FieldInfo) -> Iterator[Any]:
    """Bounds and units, those of the field itself before those of its type."""
    yield from field.metadata
    yield from _nested(field.annotation)


def _nested(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        for each in reversed(metadata):
            yield from each.metadata if isinstance(each, FieldInfo) else (each,)
        yield from _nested(inner)
    elif get_origin(annotation) is not Literal:
        for each in get_args(annotation):
            yield from _nested(each)


def _plain(annotation: Any) -> tuple[Any, bool, bool]:
    """The type that typer sees, whether it may be None, and whether there may be several."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return _plain(get_args(annotation)[0])[0], False, True
    if get_origin(annotation) is not Literal and type(None) in get_args(annotation):
        (inner,) = (each for each in get_args(annotation) if each is not type(None))
        return _plain(inner)[0], True, False
    return annotation, False, False


def _sentence(error: Any, secrets: Container[str], called: Callable[[str], str]) -> str:
    text = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if not error["loc"]:
        return text
    name = str(error["loc"][0])
    option, given = called(name), "" if name in secrets else f" {error['input']}"
    if error["type"] == "missing":
        return f"{option} is needed"
    return f"{option}{given}: {'' if text[0].isupper() else 'must be '}{text}"
