"""The launcher's work on files: options, repository, artifacts, ports, remains."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from internvideo_server.engine_directory import EngineKind
from internvideo_server.launch import (
    LaunchError,
    _artifacts,
    _supervisor,
    settle_length,
    start,
)
from internvideo_server.launch._device import Device, resolve_device
from internvideo_server.launch._ports import resolve_ports
from internvideo_server.launch._processes import tail
from internvideo_server.launch._repository import RunPlan, read_config, render_repository, set_parameters
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS
from tests.launch_lab import Lab


def settled(lab: Lab, **changes: Any) -> ServeSettings:
    options = ServeSettings(checkpoint=lab.checkpoint, engine=lab.engine, **changes)
    return settle_length(options, lab.checkpoint, Device(None), Device(None), [])[0]


def plan_of(lab: Lab, device: Device, dtype: str, allowed: tuple[Path, ...] = ()) -> RunPlan:
    settings = ServeSettings(decode_workers=2, max_queue_size=7, allowed_local_media_path=allowed)
    return RunPlan(settings, lab.checkpoint, lab.engine, dtype, device, device)


# ---- options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allowed_local_media_path": (Path("/no/such/directory"),)}, "/no/such/directory is not a directory"),
        ({"engine": Path("/engine")}, "--engine needs --checkpoint"),
        ({"checkpoint": Path("/no/such/checkpoint")}, "--checkpoint /no/such/checkpoint is not a directory"),
    ],
)
def test_directories_that_are_not_there_are_refused_by_option(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        start(ServeSettings(**changes))


def test_device_names() -> None:
    assert (resolve_device("cpu").name, resolve_device("cuda").name, resolve_device("cuda:3").name) == ("cpu", "cuda:0", "cuda:3")
    assert (resolve_device("cpu").default_dtype, resolve_device("cuda").default_dtype) == ("float32", "bfloat16")


# ---- repository


@pytest.mark.parametrize(
    ("device", "dtype", "tensor_type", "group", "gpu_ids"),
    [
        (Device(None), "float32", "TYPE_FP32", ("KIND_CPU", []), ""),
        (Device(3), "bfloat16", "TYPE_BF16", ("KIND_GPU", [3]), "3"),
        (Device(0), "float16", "TYPE_FP16", ("KIND_GPU", [0]), "0"),
    ],
)
def test_rendered_repository_has_the_values_of_the_run(
    lab: Lab, tmp_path: Path, device: Device, dtype: str, tensor_type: str, group: tuple[str, list[int]], gpu_ids: str
) -> None:
    allowed = (tmp_path / "a", tmp_path / "b")
    target = tmp_path / "rendered"
    names = render_repository(lab.home / "model_repository", target, plan_of(lab, device, dtype, allowed))

    assert names == ["preprocessing", "tensorrt_llm", "vit"]
    configs = {name: read_config(target / name / "config.pbtxt") for name in names}
    parameters = {name: {k: v.string_value for k, v in config.parameters.items()} for name, config in configs.items()}
    handoff_id = parameters["preprocessing"]["handoff_id"]
    assert re.fullmatch("[0-9a-f]{32}", handoff_id)
    assert handoff_id != plan_of(lab, device, dtype, allowed).handoff_id  # each run has its own
    assert parameters["vit"] == {
        "handoff_id": handoff_id,
        "checkpoint_dir": str(lab.checkpoint),
        "engine_dir": str(lab.engine),
        "dtype": dtype,
        "vit_quantization": "none",
        "device": device.name,
        "embedding_cache_mb": "",
        "cuda_region_count": "8",
        "cuda_region_mb": "",
        "cuda_region_prefix": "internvideo_vit_",
        "max_queue_size": "7",
        "kept": "as it was",
    }
    assert parameters["tensorrt_llm"].pop("unsupported_inputs") == ",".join(EngineKind.EMBEDDED.unsupported_inputs(lab.engine))
    assert parameters["tensorrt_llm"] == {
        "engine": "embedded",
        "gpt_model_path": str(lab.engine),
        "gpu_device_ids": gpu_ids,
        "guided_decoding_backend": "",
        "xgrammar_tokenizer_info_path": "",
        "kept": "as it was",
    }
    assert json.loads(parameters["preprocessing"]["allowed_local_media_path"]) == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert parameters["preprocessing"]["tokenizer_path"] == str(lab.engine / "tokenizer.json")
    assert (parameters["preprocessing"]["decode_workers"], parameters["preprocessing"]["max_queue_size"]) == ("2", "7")
    for config in configs.values():
        assert config.output[1].data_type == model_config_pb2.DataType.Value(tensor_type)
    (instances,) = configs["vit"].instance_group
    assert (model_config_pb2.ModelInstanceGroup.Kind.Name(instances.kind), list(instances.gpus)) == group
    assert (target / "vit" / "1" / "model.py").read_text() == (
        lab.home / "model_repository" / "vit" / "1" / "model.py"
    ).read_text()


def test_rendering_leaves_what_it_does_not_set(lab: Lab, tmp_path: Path) -> None:
    source = lab.home / "model_repository"
    render_repository(source, tmp_path / "once", plan_of(lab, Device(None), "float32"))
    before, after = (read_config(root / "preprocessing" / "config.pbtxt") for root in (source, tmp_path / "once"))
    for config in (before, after):
        config.ClearField("parameters")
        config.output[1].data_type = model_config_pb2.DataType.TYPE_FP32
    assert before == after


def test_rendering_a_rendered_repository_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    settings = plan_of(lab, Device(1), "bfloat16")
    render_repository(lab.home / "model_repository", tmp_path / "once", settings)
    render_repository(tmp_path / "once", tmp_path / "twice", settings)
    for name in ("preprocessing", "vit", "tensorrt_llm"):
        assert (tmp_path / "twice" / name / "config.pbtxt").read_text() == (tmp_path / "once" / name / "config.pbtxt").read_text()


def test_ensemble_gets_its_empty_version_directory(lab: Lab, tmp_path: Path) -> None:
    ensemble = lab.home / "model_repository" / "internvideo2_5"
    ensemble.mkdir()
    (ensemble / "config.pbtxt").write_text('platform: "ensemble"')
    render_repository(lab.home / "model_repository", tmp_path / "rendered", plan_of(lab, Device(None), "float32"))
    assert (tmp_path / "rendered" / "internvideo2_5" / "1").is_dir()


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8"))))
def test_parameters_survive_the_text_form_whatever_they_contain(values: dict[str, str]) -> None:
    config = model_config_pb2.ModelConfig()
    set_parameters(config, values)
    again = text_format.Parse(text_format.MessageToString(config), model_config_pb2.ModelConfig())
    assert {key: value.string_value for key, value in again.parameters.items()} == values


def test_broken_config_is_refused_with_file_and_line(lab: Lab, tmp_path: Path) -> None:
    (lab.home / "model_repository" / "vit" / "config.pbtxt").write_text('backend: "python"\nmax_batch_sice: 1\n')
    with pytest.raises(LaunchError, match=r"vit/config.pbtxt: 2:1"):
        render_repository(lab.home / "model_repository", tmp_path / "rendered", plan_of(lab, Device(None), "float32"))


def test_missing_model_is_named(lab: Lab, tmp_path: Path) -> None:
    (lab.home / "model_repository" / "vit" / "config.pbtxt").unlink()
    with pytest.raises(LaunchError, match="vit missing"):
        render_repository(lab.home / "model_repository", tmp_path / "rendered", plan_of(lab, Device(None), "float32"))


# ---- checkpoint and engine


def test_the_engines_dtype_is_the_runs_and_must_equal_a_given_one(lab: Lab) -> None:
    lab.write_engine_limits(dtype="bfloat16")
    assert _artifacts.resolve_dtype(ServeSettings(), lab.engine) == "bfloat16"
    with pytest.raises(LaunchError, match=r"--dtype float32, but the engine .* is bfloat16"):
        _artifacts.resolve_dtype(ServeSettings(dtype="float32"), lab.engine)


def test_more_frames_than_the_engine_takes_are_refused_with_the_number_that_fits(lab: Lab) -> None:
    lab.write_engine_limits(frames=40)
    with pytest.raises(LaunchError, match="at most --max-frames 40"):
        settled(lab, max_frames=128)
    assert settled(lab, num_frames=8, max_frames=40).max_frames == 40


def test_engine_directory_without_config_is_refused(lab: Lab) -> None:
    (lab.engine / "config.json").unlink()
    with pytest.raises(LaunchError, match=r"config.json does not exist"):
        _artifacts.resolve_dtype(ServeSettings(), lab.engine)


def test_without_a_checkpoint_the_demo_model_is_served(lab: Lab) -> None:
    assert _artifacts.find_checkpoint(ServeSettings(), lab.home) == lab.home / "build_scripts" / "demo_model"


def test_home_without_models_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path))
    with pytest.raises(LaunchError, match="INTERNVIDEO_HOME"):
        _artifacts.project_home()


def test_a_cache_that_cannot_be_written_is_named(lab: Lab, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVIDEO_CACHE", "/proc/none")
    with pytest.raises(LaunchError, match=r"the cache cannot be written; \$INTERNVIDEO_CACHE .*/proc/none"):
        start(ServeSettings(checkpoint=checkpoint, device="cpu", **FREE_PORTS))


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("INTERNVIDEO_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(LaunchError, match=r"set \$INTERNVIDEO_CACHE"):
        _artifacts.cache_directory()


LOG = """\
I1126 20:59:01.123456 77 model_lifecycle.cc:473] "loading: vit:1"
E1126 20:59:02.000001 77 pb_stub.cc:402] "something else"
E1126 20:59:02.123456 77 model_lifecycle.cc:642] "failed to load 'vit' version 1: Internal: ValueError: no weights

At:
  /models/vit/1/model.py(40): initialize
"
I1126 20:59:03.123456 77 server.cc:631]
+-------+---------+----------------------------------------+
| vit   | 1       | UNAVAILABLE: Internal: no weights      |
+-------+---------+----------------------------------------+
"""


def test_of_a_log_with_errors_they_are_shown_and_what_would_not_load_first(tmp_path: Path) -> None:
    log = tmp_path / "tritonserver.log"
    log.write_text(LOG)
    shown = tail(log).strip().splitlines()
    assert shown[0] == "\"failed to load 'vit' version 1: Internal: ValueError: no weights"
    assert "  /models/vit/1/model.py(40): initialize" in shown
    assert not [line for line in shown if "loading" in line or line.startswith(("|", "+"))]


def test_of_a_log_without_errors_the_end_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "tritonserver.log"
    log.write_text("".join(f"I1126 line {number}\n" for number in range(60)))
    shown = tail(log, 5).strip().splitlines()
    assert shown == ["Last lines of tritonserver.log:", *(f"I1126 line {number}" for number in range(55, 60))]


# ---- ports


def test_free_ports_are_all_different_and_given_ones_are_kept() -> None:
    ports = resolve_ports({f"--p{i}": ("127.0.0.1", 0) for i in range(20)})
    assert len(set(ports.values())) == 20
    free = ports["--p0"]
    assert resolve_ports({"--port": ("127.0.0.1", free)}) == {"--port": free}


def test_taken_port_is_refused_by_its_flag() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"--triton-http-port: cannot listen on 127.0.0.1:{port}"):
            resolve_ports({"--triton-http-port": ("127.0.0.1", port)})


@pytest.mark.parametrize("port", [-1, 65536, 70000])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(LaunchError, match=f"--port must be a port from 0 to 65535, got {port}"):
        resolve_ports({"--port": ("127.0.0.1", port)})


def test_one_port_for_two_things_is_refused() -> None:
    (free,) = resolve_ports({"--port": ("127.0.0.1", 0)}).values()
    with pytest.raises(LaunchError, match="used for two things"):
        resolve_ports({"--port": ("127.0.0.1", free), "--triton-http-port": ("127.0.0.1", free)})


# ---- remains


def test_only_empty_environment_directories_that_no_living_server_can_own_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    # The run began 60 s ago; a server started 300 s ago and one started 15 s ago are alive.
    ages = {"before": -100.0, "orphan": -50.0, "foreign": -10.0, "full": -50.0}
    for name, age in ages.items():
        directory = tmp_path / f"python_env_{name:_<6.6}"
        directory.mkdir()
        if name == "full":
            (directory / "file").write_text("")
        os.utime(directory, (now + age, now + age))
    monkeypatch.setattr(_supervisor, "_PYTHON_ENVS", tmp_path)
    monkeypatch.setattr(_supervisor, "_tritonserver_starts", lambda: iter([now - 300, now - 15]))

    _supervisor.remove_remains("0" * 8, since=now - 60)

    left = {path.name.removeprefix("python_env_").rstrip("_") for path in tmp_path.iterdir()}
    assert left == {"before", "foreig", "full"}


def test_compiled_kernels_are_kept_with_the_other_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVIDEO_CACHE", str(tmp_path))
    assert _artifacts.compiler_environment({})["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "kernels")
    assert "TORCHINDUCTOR_CACHE_DIR" not in _artifacts.compiler_environment({"TORCHINDUCTOR_CACHE_DIR": "/elsewhere"})
