"""Write what is generated from the settings.

That is docs/settings.md, the table of docs/quickstart.md, the chart's schema and docker/settings.env. Run it after a setting was
added or changed; tests/test_settings_reference.py compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console

from internvideo_server.settings import (
    AdapterSettings,
    EngineSettings,
    PreprocessingSettings,
    RouterSettings,
    ServeSettings,
    VitSettings,
    flag,
    groups,
    shown_default,
    unit_of,
    variable,
)

ROOT = Path(__file__).resolve().parent.parent

#: What docs/quickstart.md shows.
MOST_USED = (
    "checkpoint",
    "engine",
    "device",
    "num_frames",
    "max_frames",
    "allowed_local_media_path",
    "allowed_media_domains",
    "host",
    "port",
    "request_timeout",
    "frame_cache_mb",
    "embedding_cache_mb",
    "run_directory",
)
#: What the containers' own files decide: paths and ports inside, and how long a start may take.
CONTAINER_SETS = (
    "checkpoint",
    "engine",
    "device",
    "allowed_local_media_path",
    "host",
    "port",
    "triton_host",
    "triton_http_port",
    "triton_grpc_port",
    "triton_metrics_host",
    "triton_metrics_port",
    "name",
    "run_directory",
    "ready_timeout",
    "replicas",
    "replica_name",
)
_READERS: dict[str, type[BaseModel]] = {"preprocessing": PreprocessingSettings, "vit": VitSettings, "adapter": AdapterSettings}

_INTRO = """\
# Settings

<!-- Written by build_scripts/settings_reference.py: change internvideo_server/settings and run it. -->

Each setting has one name everywhere. `num_frames` is

* `--num-frames` of `internvideo serve`, and of `doctor`, `demo` and `build_scripts/render_repository.py` where they have it;
* `INTERNVIDEO_NUM_FRAMES` in their environment, which an option overrides; folders are separated by `:`, other lists by spaces;
* `num_frames` in the `parameters` of a model's config.pbtxt, where a model reads it (the last column); lists are JSON, and
  an empty value is the default;
* `settings.numFrames` of the Helm chart.

`--no-NAME` switches off what is on. A value out of its range is refused with the option's name.
"""


def reference() -> str:
    """docs/settings.md."""
    parts = [_INTRO]
    titles = dict.fromkeys(title for _, title in groups(ServeSettings))
    for title in titles:
        parts.append(f"## {title}\n")
        parts.append(_table(ServeSettings, [name for name, group in groups(ServeSettings) if group == title], readers=True))
    parts.append(
        "## Parameters that `serve` works out\n\nThey stand in the models' config.pbtxt files, beside the settings above.\n"
    )
    own: dict[str, type[BaseModel]] = {
        "preprocessing": PreprocessingSettings,
        "vit": VitSettings,
        "tensorrt_llm, as far as the embedded engine reads it": EngineSettings,
    }
    for model, settings in own.items():
        names = [name for name in settings.model_fields if _resolved(name, settings)]
        parts.append(f"### {model}\n")
        parts.append(_table(settings, names, option=False))
    parts.append(
        "## The adapter by itself\n\n`python -m internvideo_client.adapter` takes these beside the adapter's settings above.\n"
    )
    parts.append(
        _table(AdapterSettings, [name for name in AdapterSettings.model_fields if name not in ServeSettings.model_fields])
    )
    parts.append("## The router\n\n`internvideo router` ([scale.md](scale.md)) takes these, by option or environment variable.\n")
    parts.append(_table(RouterSettings, list(RouterSettings.model_fields)))
    return "\n".join(parts)


def most_used_table() -> str:
    """The most used settings."""
    return _table(ServeSettings, MOST_USED, ranges=False)


def environment_file() -> str:
    """docker/settings.env: every variable of a container, commented out."""
    lines = [
        "# Settings of the container, for Compose or `docker run --env-file`. Written by build_scripts/settings_reference.py."
    ]
    lines.append(
        "# Copy it, change what should differ from the default, and name the copy: SETTINGS=$PWD/my.env docker compose ..."
    )
    for name, _ in groups(ServeSettings):
        if name not in CONTAINER_SETS:
            lines += ["", f"# {ServeSettings.model_fields[name].description}", f"#{variable(name)}={_environment_default(name)}"]
    return "\n".join(lines) + "\n"


def chart_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The chart's schema with the settings as they are now."""
    properties = _properties(ServeSettings)
    secrets = {
        name for name, each in properties.items() if "writeOnly" in json.dumps(each)
    }  # on a command line all can read them
    left_out = {*CONTAINER_SETS, *secrets}
    kept = {_camel(name): _chart_property(properties[name]) for name, _ in groups(ServeSettings) if name not in left_out}
    settings = {"type": "object", "additionalProperties": False, "properties": kept}
    return {**schema, "definitions": {**schema["definitions"], "settings": settings}}


def files(root: Path = ROOT) -> dict[Path, str]:
    """Each generated file with what it should hold."""
    start, chart = root / "docs" / "quickstart.md", root / "docker" / "helm" / "internvideo" / "values.schema.json"
    marked = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)
    return {
        root / "docs" / "settings.md": reference(),
        start: marked.sub(lambda _: most_used_table(), start.read_text()),
        root / "docker" / "settings.env": environment_file(),
        chart: json.dumps(chart_schema(json.loads(chart.read_text())), indent=2) + "\n",
    }


def _table(
    model: type[BaseModel],
    names: Iterator[str] | list[str] | tuple[str, ...],
    *,
    readers: bool = False,
    option: bool = True,
    ranges: bool = True,
) -> str:
    columns = ["option" if option else "parameter", "default", *["range"] * ranges, "meaning", *["read by"] * readers]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name in names:
        field, schema = model.model_fields[name], _properties(model)[name]
        cells = [f"`{flag(name) if option else name}`", "needed" if field.is_required() else _default(field, unit=not ranges)]
        cells += [_range(schema, unit_of(field))] * ranges
        cells += [str(field.description)]
        cells += [
            ", ".join(reader for reader, each in _READERS.items() if name in each.model_fields and not _resolved(name, each))
            or "the launcher"
        ] * readers
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _properties(model: type[BaseModel]) -> dict[str, Any]:
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    return {name: _flat(schema) for name, schema in properties.items()}


def _flat(schema: dict[str, Any]) -> dict[str, Any]:
    """Without pydantic's way of saying that a value may be absent."""
    (inner, *_) = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    return {**schema, **inner}


def _default(field: FieldInfo, *, unit: bool) -> str:
    value = field.get_default(call_default_factory=True)
    if words := shown_default(field):
        return words
    if value in (None, (), ""):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | tuple):
        return f"`{value if isinstance(value, str) else ' '.join(map(str, value))}`"
    if unit_of(field) == "bytes" and not value % (1 << 20):
        return f"{value} ({value >> 20} MiB)"
    return f"{value:.10g} {unit_of(field)}" if unit and unit_of(field) else f"{value:.10g}"


def _range(schema: dict[str, Any], unit: str | None) -> str:
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    low, high = schema.get("minimum"), schema.get("maximum")
    words = [f"{low:g} to {high:g}"] if low is not None and high is not None else []
    words += [f"at least {low:g}"] if low is not None and high is None else []
    words += [f"more than {schema['exclusiveMinimum']:g}"] if "exclusiveMinimum" in schema and low is None else []
    words += [f"less than {schema['exclusiveMaximum']:g}"] if "exclusiveMaximum" in schema else []
    words += [f"a multiple of {schema['multipleOf']}"] if "multipleOf" in schema else []
    text = ", ".join(words)
    return f"{unit}, {text}" if unit and text else unit or text


def _environment_default(name: str) -> str:
    value = ServeSettings.model_fields[name].get_default(call_default_factory=True)
    if shown_default(ServeSettings.model_fields[name]) or value in (None, ()):
        return ""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _chart_property(schema: dict[str, Any]) -> dict[str, Any]:
    """For helm: null is the default, and `--set` makes strings of numbers with a point."""
    kept = {key: value for key, value in schema.items() if key not in ("title", "format", "default", "default_text", "anyOf")}
    if "enum" in kept:
        return {**kept, "type": [kept["type"], "null"], "enum": [*kept["enum"], None]}
    if kept["type"] == "number":
        return {**kept, "type": ["number", "string", "null"], "pattern": r"^[0-9]+(\.[0-9]+)?$"}
    if kept["type"] == "array":  # one is written as a string, too
        return {**kept, "type": ["array", "string", "null"]}
    return {**kept, "type": [kept["type"], "null"]}


def _resolved(name: str, model: type[BaseModel]) -> bool:
    """Whether the launcher works it out, instead of handing on its own setting."""
    return name not in ServeSettings.model_fields or model.model_fields[name].is_required()


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(each.capitalize() for each in rest)


def main() -> None:
    """Write what is generated from the settings."""
    console = Console(highlight=False)
    for path, text in files().items():
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
            console.print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
