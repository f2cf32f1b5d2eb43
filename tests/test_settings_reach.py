"""Each option of `serve` arrives where it is read: none gets lost on the way, and none of the readers' limits is out of reach."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
from typer.testing import CliRunner

from internvideo_server.launch import Device, RunPlan, read_config, render_repository
from internvideo_server.launch._commands import adapter_command, adapter_settings
from internvideo_server.preprocessing.media import MediaPolicy
from internvideo_server.preprocessing.video import DecodeLimits
from internvideo_server.settings import (
    AdapterSettings,
    PreprocessingSettings,
    ServeSettings,
    VitSettings,
    VllmSettings,
    environment_of,
    from_parameters,
    groups,
    options_from,
)
from tests.launch_lab import Lab

#: And of vLLM, which is not the engine here.
OF_THE_LAUNCHER = {name for name, group in groups(ServeSettings) if group in ("Model", "Server", "vLLM")} | {"max_model_len"}


def other(name: str, folder: Path) -> Any:
    """Another value than the default, where one can be made up."""
    known: dict[str, Any] = {
        "max_frames": 256,
        "max_model_len": "9000",
        "num_frames": 16,
        "allowed_local_media_path": (folder,),
        "allowed_media_domains": ("a.example", "b.example"),
        "allow_private_media_host": ("minio",),
        "decode_timeout": 17.5,
        "first_token_timeout": 17.5,
        "max_decode_cost": 17.5,
        "cuda_region_mb": 3,
        "gpu_memory": 40.0,
        "engine_arg": ("enforce_eager=true",),
    }
    value, annotation = getattr(ServeSettings(), name), ServeSettings.model_fields[name].annotation
    if name in known:
        return known[name]
    if get_origin(annotation) is Literal:
        return next(each for each in get_args(annotation) if each != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"other_{value}"
    return value + 1 if isinstance(value, int | float) else value


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    changed = {name: other(name, tmp_path) for name in ServeSettings.model_fields if name not in OF_THE_LAUNCHER}
    return ServeSettings(**changed, llm_engine="vllm")


@pytest.fixture
def read(settings: ServeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What model.py of each model reads of a rendered repository, where vLLM is installed."""
    lab = Lab(tmp_path / "lab")
    plan = RunPlan(settings, lab.checkpoint, lab.engine, "float32", Device(None), Device(None))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: name)
        render_repository(lab.home / "model_repository", tmp_path / "rendered", plan)
    models: dict[str, Any] = {"preprocessing": PreprocessingSettings, "vit": VitSettings, "tensorrt_llm": VllmSettings}
    found = {}
    for name, model in models.items():
        config = read_config(tmp_path / "rendered" / name / "config.pbtxt")
        found[name] = from_parameters(model, {key: value.string_value for key, value in config.parameters.items()})
    return found


def told(settings: ServeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterSettings:
    """What the adapter reads of its command line, in an environment that says otherwise."""
    app, seen = typer.Typer(), []

    @app.command()
    @options_from(AdapterSettings)
    def command(adapter: AdapterSettings) -> None:
        seen.append(adapter)

    wanted = adapter_settings(settings, {"--port": settings.port}, "127.0.0.1:1", tmp_path, None, tmp_path / "state.json")
    for name, value in {**environment_of(wanted, {"INTERNVIDEO_EXAMPLES": "/another"}), "INTERNVIDEO_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, adapter_command(wanted)[4:])
    assert (result.exit_code, seen) == (0, [wanted]), result.output
    return wanted


def test_every_setting_arrives_at_a_model_or_the_adapter_or_is_the_launchers(
    settings: ServeSettings, read: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = [*read.values(), told(settings, tmp_path, monkeypatch)]
    for name, value in settings:
        if name not in OF_THE_LAUNCHER:
            arrived = [getattr(reader, name) for reader in readers if name in type(reader).model_fields]
            assert arrived and all(each == value for each in arrived), name


def test_no_limit_of_media_or_decoding_is_out_of_reach(read: dict[str, Any]) -> None:
    for limits, defaults in (
        (MediaPolicy.of(read["preprocessing"]), MediaPolicy()),
        (DecodeLimits.of(read["preprocessing"]), DecodeLimits()),
    ):
        same = [
            field.name for field in dataclasses.fields(limits) if getattr(limits, field.name) == getattr(defaults, field.name)
        ]
        assert same == []


def test_limits_without_settings_are_the_settings_defaults() -> None:
    settings = PreprocessingSettings(tokenizer_path=Path("/t"), engine_dir=Path("/e"), handoff_id="x")
    assert (MediaPolicy.of(settings), DecodeLimits.of(settings)) == (MediaPolicy(), DecodeLimits())
