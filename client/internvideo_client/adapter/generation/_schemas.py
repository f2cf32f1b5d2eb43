"""JSON schemas of requests: what a grammar library would choke on is refused, and what they leave open is closed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from internvideo_client.errors import bad_request

# xgrammar, which TensorRT-LLM uses, has no limits of its own.
MAX_DEPTH, MAX_PROPERTIES, MAX_ENUM = 64, 300, 1000

# Where other schemas stand in one: alone, in a list, by their names.
_ONE = ("items", "additionalProperties")
_SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "$defs", "definitions")
#: Beside them an object's own properties are not all that it may have.
_COMPOSING = ("anyOf", "oneOf", "$ref", "$dynamicRef")
_NAMED_TOO = ("patternProperties", "dependentSchemas")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
#: What stands under them is data.
_VALUES = ("const", "enum", "default", "examples")
_CONDITIONS = ("patternProperties", "unevaluatedProperties", "dependentSchemas", "if", "not")


def checked_schema(name: str, schema: dict[str, Any] | str) -> dict[str, Any]:
    """A schema, from JSON where it is a text.

    Objects that name their properties get no others, unless the schema speaks of them: what is generated fits the schema all the
    same, and a model cannot go on for ever with names of its own. xgrammar does it by itself.

    Args:
        name: Of the request's field, for errors.
        schema: As it came.

    Raises:
        ApiError: It is not a JSON schema, or larger than a limit.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise bad_request(f"{name}: is not JSON: {error}", name) from None
    if not isinstance(schema, dict):
        raise bad_request(f"{name}: a schema is an object", name)
    _check(name, schema)
    asked: dict[str, Any] = _asked(schema)
    return asked if _is_composed(asked) else _closed(asked)


def moved_schema(schema: dict[str, Any], place: str) -> dict[str, Any]:
    """A schema that is to stand inside another one: its references (``#/$defs/A``, ``#``) begin at its new place there."""
    return {key: each if key in _VALUES else _moved(key, each, place) for key, each in schema.items()}


def _moved(key: str, value: Any, place: str) -> Any:
    if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
        return f"#{place}{value[1:]}"
    if isinstance(value, dict):
        # The keys of these are names, and no keywords.
        each = ((name, _moved("", inner, place)) for name, inner in value.items())
        return dict(each) if key in _NAMED or key in _NAMED_TOO else moved_schema(value, place)
    return [_moved("", inner, place) for inner in value] if isinstance(value, list) else value


def _asked(schema: Any, names: bool = False) -> Any:
    """Without keywords that ask for nothing (null, ``uniqueItems: false``), with whole numbers as counts: else it is refused."""
    if isinstance(schema, list):
        return [_asked(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, each in schema.items():
        if names or key in _VALUES:
            found[key] = _asked(each) if names else each
        elif key in _COUNTS and isinstance(each, float) and each.is_integer():
            found[key] = int(each)
        elif each is not None and not (key == "uniqueItems" and each is False):
            found[key] = _asked(each, key in _NAMED or key in _NAMED_TOO)
    return found


def _is_composed(schema: dict[str, Any]) -> bool:
    """Whether an object is described in more than one place: then none of them knows all of its properties."""
    several = schema.get("allOf")
    composed = "properties" in schema and any(key in schema for key in (*_COMPOSING, "allOf"))
    composed = composed or (isinstance(several, list) and len(several) > 1) or any(key in schema for key in _CONDITIONS)
    return composed or any(map(_is_composed, _inner(schema)))


def _inner(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found = [schema.get(key) for key in _ONE]
    found += [each for key in _SEVERAL if isinstance(schema.get(key), list) for each in schema[key]]
    found += [each for key in _NAMED if isinstance(schema.get(key), dict) for each in schema[key].values()]
    yield from (each for each in found if isinstance(each, dict))


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    closed |= {key: _closed(schema[key]) for key in _ONE if key in schema}
    closed |= {key: list(map(_closed, schema[key])) for key in _SEVERAL if isinstance(schema.get(key), list)}
    for key in _NAMED:
        if isinstance(schema.get(key), dict):
            closed[key] = {name: _closed(each) for name, each in schema[key].items()}
    properties, required = schema.get("properties"), schema.get("required") or []
    if isinstance(properties, dict) and isinstance(required, list) and set(map(str, required)) <= properties.keys():
        closed.setdefault("additionalProperties", False)
    return closed


def _check(name: str, schema: Any) -> None:
    level = [schema]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(name, value)]
        if not level:
            return
    raise bad_request(f"{name}: the schema is nested deeper than {MAX_DEPTH} levels", name)


def _children(name: str, value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return []
    properties, enum = value.get("properties"), value.get("enum")
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        raise bad_request(f"{name}: an object has more than {MAX_PROPERTIES} properties", name)
    if isinstance(enum, list) and len(enum) > MAX_ENUM:
        raise bad_request(f"{name}: an enum has more than {MAX_ENUM} values", name)
    return list(value.values())
