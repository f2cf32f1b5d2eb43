"""The settings: bounds, command lines and Triton parameters made from them, and that what is committed agrees."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr
from typer.testing import CliRunner

from internvideo_server.launch import read_config
from internvideo_server.settings import (
    AdapterSettings,
    EngineSettings,
    PreprocessingSettings,
    ServeSettings,
    SettingsError,
    VitSettings,
    arguments_of,
    build,
    environment_of,
    from_parameters,
    options_from,
    to_parameters,
)
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_frames": 3}, "--num-frames 3: must be a multiple of 4"),
        ({"num_frames": 7}, "--num-frames 7: must be a multiple of 4"),
        ({"max_frames": -4}, "--max-frames -4: must be greater than or equal to 4"),
        ({"num_frames": 132, "max_frames": 128}, "--num-frames 132 is more than --max-frames 128"),
        ({"max_model_len": "long"}, "--max-model-len long: String should match pattern"),
        ({"gpu_memory": 0}, "--gpu-memory 0: must be greater than 0"),
        ({"dtype": "int8"}, "--dtype int8: must be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ({"decode_workers": 0}, "--decode-workers 0: must be greater than or equal to 1"),
        ({"request_timeout": 0}, "--request-timeout 0: must be greater than 0"),
        ({"port": 70000}, "--port 70000: must be less than or equal to 65535"),
        ({"kv_cache_fraction": 1}, "--kv-cache-fraction 1: must be less than 1"),
        ({"no_such": 1}, "--no-such 1: Extra inputs are not permitted"),
        ({"decoder_memory_mb": 100}, "--decoder-memory-mb 100: must be greater than or equal to 256"),
        (
            {"allowed_media_domains": ["http://a.example"]},
            "--allowed-media-domains http://a.example: must be the name or address",
        ),
        ({"allow_private_media_host": ["minio:9000"]}, "--allow-private-media-host minio:9000: must be the name or address"),
        ({"vit_device": "gpu"}, "--vit-device gpu: String should match pattern"),
    ],
)
def test_values_out_of_bounds_are_refused_by_option(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        build(ServeSettings, values)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "", "cuda:1\n"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="--device"):
        build(ServeSettings, {"device": name})


@pytest.mark.parametrize("host", ["minio", "::1", "[fd00::1]", "10.0.0.1", "bücher.example"])
def test_hosts_are_names_and_addresses(host: str) -> None:
    assert build(ServeSettings, {"allow_private_media_host": [host]}).allow_private_media_host == (host,)


def test_a_value_that_was_not_given_is_the_default() -> None:
    assert build(ServeSettings, {"num_frames": None, "engine": None}) == ServeSettings()


paths = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map(Path), max_size=3)


@given(
    st.integers(1, 32).map(lambda n: 4 * n),
    paths.map(tuple),
    st.none() | st.integers(1, 100),
    st.floats(0.1, 1e6),
)
def test_parameters_of_a_model_come_back_as_they_were(
    frames: int, folders: tuple[Path, ...], region: int | None, timeout: float
) -> None:
    preprocessing = PreprocessingSettings(
        num_frames=frames,
        allowed_local_media_path=folders,
        request_timeout=timeout,
        tokenizer_path=Path("/t"),
        engine_dir=Path("/e"),
        handoff_id="x",
    )
    folder = Path("[a]")
    engine = EngineSettings(gpt_model_path=folder, enable_kv_cache_reuse=False, exclude_input_in_output=True)
    vit = VitSettings(
        cuda_region_mb=region, checkpoint_dir=folder, engine_dir=folder, dtype="float32", device="cpu", handoff_id="x"
    )
    for settings in (preprocessing, vit, engine):
        assert from_parameters(type(settings), {"another's": "x", **to_parameters(settings)}) == settings


def test_a_parameter_that_is_no_list_is_refused_by_name() -> None:
    written = {"allowed_local_media_path": "/videos", "tokenizer_path": "/t", "engine_dir": "/e"}
    with pytest.raises(SettingsError, match=r"^parameter allowed_local_media_path /videos: .*tuple"):
        from_parameters(PreprocessingSettings, written)


def command_of(model: Any, *args: Any, **fixed: Any) -> tuple[typer.Typer, list[Any]]:
    app, seen = typer.Typer(), []

    @app.command()
    @options_from(model, *args, **fixed)
    def command(settings: Any) -> None:
        seen.append(settings)

    return app, seen


def test_the_arguments_of_settings_make_the_same_settings_whatever_the_environment_says() -> None:
    settings = ServeSettings(
        num_frames=16, allowed_local_media_path=(Path("/a"), Path("/b c")), cuda_region_mb=7, verbose=True, vit_quantization="fp8"
    )
    app, seen = command_of(ServeSettings)
    result = CliRunner().invoke(app, arguments_of(settings), env={"INTERNVIDEO_PORT": "1", "INTERNVIDEO_NUM_FRAMES": "8"})
    assert (result.exit_code, seen) == (0, [settings]), result.output


class Secrets(BaseModel):
    """As settings with keys will be."""

    key: SecretStr | None = Field(None, description="one")
    keys: tuple[SecretStr, ...] = Field((), description="several")
    port: int | None = Field(None, description="no secret")


def test_secrets_reach_a_process_by_its_environment_and_other_settings_by_its_command_line() -> None:
    settings = Secrets(key=SecretStr("a"), keys=(SecretStr("b"), SecretStr("c")))
    environment = environment_of(settings, {"INTERNVIDEO_PORT": "1", "INTERNVIDEO_KEYS": "x", "PATH": "/bin"})
    assert environment == {"PATH": "/bin", "INTERNVIDEO_KEY": "a", "INTERNVIDEO_KEYS": "b c"}
    assert arguments_of(settings) == []
    app, seen = command_of(Secrets)
    assert (CliRunner().invoke(app, [], env=environment).exit_code, seen) == (0, [settings])


def test_a_secret_that_is_refused_is_not_shown() -> None:
    class Keys(BaseModel):
        """As above, with a bound."""

        keys: tuple[Annotated[SecretStr, Field(min_length=8)], ...] = ()

    with pytest.raises(SettingsError) as refused:
        build(Keys, {"keys": ["hidden"]})
    assert str(refused.value) == "--keys: Value should have at least 8 items after validation, not 6"


def test_a_list_in_the_environment_is_split_as_its_kind_is() -> None:
    app, seen = command_of(ServeSettings)
    environment = {
        "INTERNVIDEO_ALLOWED_LOCAL_MEDIA_PATH": "/a b:/c",
        "INTERNVIDEO_ALLOWED_MEDIA_DOMAINS": "a.example b.example",
        "INTERNVIDEO_HTTP_MEDIA": "false",
        "INTERNVIDEO_VIT_DEVICE": "",
    }
    assert CliRunner().invoke(app, [], env=environment).exit_code == 0
    (settings,) = seen
    assert settings.allowed_local_media_path == (Path("/a b"), Path("/c"))
    assert (settings.allowed_media_domains, settings.http_media, settings.vit_device) == (("a.example", "b.example"), False, None)


def test_a_command_may_take_some_of_the_settings_and_fix_others() -> None:
    app, seen = command_of(ServeSettings, ("num_frames",), port=0)
    assert CliRunner().invoke(app, ["--num-frames=8"]).exit_code == 0
    assert seen == [ServeSettings(num_frames=8, port=0)]
    assert CliRunner().invoke(app, ["--max-frames=8"]).exit_code == 2


def test_every_setting_is_an_option_with_help_and_an_environment_variable() -> None:
    app, seen = command_of(ServeSettings)
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300"}).output
    for name, field in ServeSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in help_text
        assert field.description, name
    result = CliRunner().invoke(app, [], env={"INTERNVIDEO_MAX_QUEUE_SIZE": "9"})
    assert (result.exit_code, seen[0].max_queue_size) == (0, 9)


def test_an_option_out_of_its_bounds_is_a_usage_error() -> None:
    for argument in ("--num-frames=6", "--port=-1", "--video-reader=vlc", "--engine-dir=/e"):
        app, seen = command_of(ServeSettings)
        assert (CliRunner().invoke(app, [argument]).exit_code, seen) == (2, [])


OURS = {"preprocessing": PreprocessingSettings, "vit": VitSettings}


@pytest.mark.parametrize(("model", "settings"), OURS.items())
def test_the_committed_repository_has_the_defaults(model: str, settings: Any) -> None:
    parameters = read_config(ROOT / "model_repository" / model / "config.pbtxt").parameters
    committed = {name: value.string_value for name, value in parameters.items() if not name.isupper()}
    assert set(committed) <= set(settings.model_fields)  # a name that is not read would be set in vain
    required = {name: committed[name] for name, field in settings.model_fields.items() if field.is_required()}
    assert from_parameters(settings, committed) == from_parameters(settings, required)


def test_the_committed_engine_parameters_can_be_read() -> None:
    parameters = read_config(ROOT / "model_repository" / "tensorrt_llm" / "config.pbtxt").parameters
    committed = {name: value.string_value for name, value in parameters.items()}
    assert set(EngineSettings.model_fields) <= set(committed)
    settings = from_parameters(EngineSettings, committed)
    assert to_parameters(settings) == {name: committed[name] for name in EngineSettings.model_fields}


def test_an_option_of_the_adapter_is_the_servers_of_the_same_name() -> None:
    for name, field in AdapterSettings.model_fields.items():
        if name in ServeSettings.model_fields and name != "max_frames":  # which the launcher works out
            assert repr(field) == repr(ServeSettings.model_fields[name])
    assert (
        inspect.signature(options_from(AdapterSettings)(lambda settings: None)).parameters.keys()
        == AdapterSettings.model_fields.keys()
    )
