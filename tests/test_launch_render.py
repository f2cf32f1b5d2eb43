"""The launcher's work on files: options, repository, backends, artifacts, ports, the host's check."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from internvideo_server.launch import LaunchError, ServeOptions, _artifacts, _keeper, _tritonserver, find_tritonserver, start
from internvideo_server.launch._backends import backend_directory
from internvideo_server.launch._options import Device
from internvideo_server.launch._ports import resolve_ports
from internvideo_server.launch._processes import Run, tail
from internvideo_server.launch._progress import Progress
from internvideo_server.launch._repository import RunSettings, read_config, render_repository, set_parameters
from internvideo_server.launch._tritonserver import TritonServer, resolve_device
from tests.asking import FREE_PORTS
from tests.launch_lab import Lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("INTERNVIDEO_CACHE", str(tmp_path / "cache"))
    return Lab(tmp_path)


def settings_of(lab: Lab, device: Device, dtype: str, allowed: tuple[Path, ...] = ()) -> RunSettings:
    return RunSettings(lab.checkpoint, lab.engine, device, dtype, 80, 128, allowed, decode_workers=2, max_queue_size=7)


# ---- options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 3}, "--num-frames must be a positive multiple of 4"),
        ({"num_frames": 0}, "--num-frames must be a positive multiple of 4"),
        ({"max_frames": -4}, "--max-frames must be a positive multiple of 4"),
        ({"num_frames": 84, "max_frames": 80}, "--num-frames 84 is more than --max-frames 80"),
        ({"dtype": "int8"}, "--dtype must be one of"),
        ({"vit_quantization": "int8"}, "--vit-quantization must be one of none, fp8"),
        ({"allowed_local_media_path": (Path("/no/such/directory"),)}, "/no/such/directory is not a directory"),
        ({"engine": Path("/engine")}, "--engine needs --checkpoint"),
        ({"checkpoint": Path("/no/such/checkpoint")}, "--checkpoint /no/such/checkpoint is not a directory"),
        ({"decode_workers": 0}, "--decode-workers must be at least 1"),
        ({"cuda_region_count": 0}, "--cuda-region-count must be at least 1"),
        ({"cuda_region_mb": 0}, "--cuda-region-mb must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused_by_flag(changes: dict[str, object], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        ServeOptions(**changes)  # type: ignore[arg-type]


def test_a_page_without_the_extra_is_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(LaunchError, match=r"pip install 'internvideo-triton\[ui\]'"):
        ServeOptions(ui_port=0)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", ""])
def test_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(LaunchError, match="--device must be"):
        resolve_device(name)


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
    names = render_repository(lab.home / "model_repository", target, settings_of(lab, device, dtype, allowed))

    assert names == ["preprocessing", "tensorrt_llm", "vit"]
    configs = {name: read_config(target / name / "config.pbtxt") for name in names}
    parameters = {name: {k: v.string_value for k, v in config.parameters.items()} for name, config in configs.items()}
    assert parameters["vit"] == {
        "checkpoint_dir": str(lab.checkpoint),
        "engine_dir": str(lab.engine),
        "dtype": dtype,
        "quantization": "none",
        "device": device.name,
        "embedding_cache_bytes": str(1024 << 20),
        "cuda_region_count": "8",
        "cuda_region_bytes": "0",
        "kept": "as it was",
    }
    assert parameters["tensorrt_llm"] == {
        "gpt_model_path": str(lab.engine),
        "gpu_device_ids": gpu_ids,
        "guided_decoding_backend": "",
        "xgrammar_tokenizer_info_path": "",
        "kept": "as it was",
    }
    assert parameters["preprocessing"]["allowed_local_media_path"] == f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}"
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
    render_repository(source, tmp_path / "once", settings_of(lab, Device(None), "float32"))
    before, after = (read_config(root / "preprocessing" / "config.pbtxt") for root in (source, tmp_path / "once"))
    for config in (before, after):
        config.ClearField("parameters")
        config.output[1].data_type = model_config_pb2.DataType.TYPE_FP32
    assert before == after


def test_rendering_a_rendered_repository_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    settings = settings_of(lab, Device(1), "bfloat16")
    render_repository(lab.home / "model_repository", tmp_path / "once", settings)
    render_repository(tmp_path / "once", tmp_path / "twice", settings)
    for name in ("preprocessing", "vit", "tensorrt_llm"):
        assert (tmp_path / "twice" / name / "config.pbtxt").read_text() == (tmp_path / "once" / name / "config.pbtxt").read_text()


def test_ensemble_gets_its_empty_version_directory(lab: Lab, tmp_path: Path) -> None:
    ensemble = lab.home / "model_repository" / "internvideo2_5"
    ensemble.mkdir()
    (ensemble / "config.pbtxt").write_text('platform: "ensemble"')
    render_repository(lab.home / "model_repository", tmp_path / "rendered", settings_of(lab, Device(None), "float32"))
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
        render_repository(lab.home / "model_repository", tmp_path / "rendered", settings_of(lab, Device(None), "float32"))


def test_missing_model_is_named(lab: Lab, tmp_path: Path) -> None:
    (lab.home / "model_repository" / "vit" / "config.pbtxt").unlink()
    with pytest.raises(LaunchError, match="vit missing"):
        render_repository(lab.home / "model_repository", tmp_path / "rendered", settings_of(lab, Device(None), "float32"))


# ---- tritonserver and its host


def fake_server(root: Path) -> Path:
    binary = root / "bin" / "tritonserver"
    for path in (binary, root / "backends" / "python" / "triton_python_backend_stub"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        path.chmod(0o755)
    return binary


def test_the_given_tritonserver_comes_before_the_one_on_path(tmp_path: Path) -> None:
    given, on_path = fake_server(tmp_path / "given"), fake_server(tmp_path / "path")
    path = {"PATH": str(on_path.parent)}
    assert find_tritonserver({"TRITONSERVER": str(given), **path}).binary == given
    assert find_tritonserver(path).binary == on_path
    assert find_tritonserver(path).backends == tmp_path / "path" / "backends"


def test_the_wheels_tritonserver_is_the_last_resort(tmp_path: Path) -> None:
    server = find_tritonserver({"PATH": str(tmp_path)})
    assert server.binary.name == "tritonserver"
    assert server.python_stub.parent.name == f"{sys.version_info.major}.{sys.version_info.minor}"
    environment = server.environment({"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/mine"})
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    libraries = environment["LD_LIBRARY_PATH"].split(os.pathsep)
    assert libraries[0].endswith("nvidia_pytriton.libs")
    assert any(Path(libraries[1]).glob("libpython3*.so.1.0"))
    assert libraries[2:] == ["/mine"]


def test_a_given_tritonserver_that_is_no_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"TRITONSERVER is .* not an executable"):
        find_tritonserver({"TRITONSERVER": str(tmp_path / "absent")})


def test_no_tritonserver_at_all_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tritonserver.util, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match="pip install nvidia-pytriton"):
        find_tritonserver({"PATH": str(tmp_path)})


def test_missing_libpython_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _tritonserver.sysconfig, "get_config_var", lambda name: {"LDVERSION": "3.11", "LIBDIR": str(tmp_path)}.get(name)
    )
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    with pytest.raises(LaunchError, match=r"libpython3.11.so.1.0 is missing.*apt install libpython3"):
        find_tritonserver({"PATH": str(tmp_path)})


def test_an_environment_at_a_path_that_the_stub_cannot_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "vidéos" / ".venv"))
    with pytest.raises(LaunchError, match=r"cannot run from .*vidéos.*: the path has characters beyond ASCII"):
        find_tritonserver({"PATH": str(tmp_path)})


def test_python_without_a_stub_names_those_that_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Version(tuple[int, ...]):
        major, minor = 3, 99

    monkeypatch.setattr(sys, "version_info", Version((3, 99)))
    with pytest.raises(LaunchError, match=r"no stub for Python 3.99, only for .*3.11"):
        find_tritonserver({"PATH": str(tmp_path)})


@pytest.mark.parametrize("version", ["2.0.0", "2.5.1", None])
def test_wrong_or_missing_numpy_says_what_to_install(
    version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version_of(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(_tritonserver.metadata, "version", version_of)
    with pytest.raises(LaunchError, match=r"numpy.*pip install 'numpy>=1.26,<2'"):
        find_tritonserver({"PATH": str(tmp_path)})


# ---- backends


def test_embedded_engine_gets_the_python_backend_with_its_stub_and_ours(lab: Lab, tmp_path: Path) -> None:
    server = find_tritonserver({"PATH": str(tmp_path)})
    built = backend_directory(server, lab.home / "server" / "backends", lab.engine, tmp_path / "backends")
    assert (built / "python" / "libtriton_python.so").is_file()
    assert os.access(built / "python" / "triton_python_backend_stub", os.X_OK)
    assert (built / "tensorrtllm" / "model.py").is_file()


def test_tensorrt_llm_engine_runs_on_the_servers_own_backend_or_is_refused(lab: Lab, tmp_path: Path) -> None:
    (lab.engine / "rank0.engine").write_text("")
    binary = fake_server(tmp_path / "triton")
    server = TritonServer(binary, tmp_path / "triton" / "backends", binary, ())
    with pytest.raises(LaunchError, match="no tensorrtllm backend"):
        backend_directory(server, lab.home / "server" / "backends", lab.engine, tmp_path / "backends")
    (server.backends / "tensorrtllm").mkdir()
    (server.backends / "tensorrtllm" / "libtriton_tensorrtllm.so").write_text("")
    assert backend_directory(server, lab.home / "server" / "backends", lab.engine, tmp_path / "backends") == server.backends


def test_directory_without_an_engine_is_refused(lab: Lab, tmp_path: Path) -> None:
    server = find_tritonserver({"PATH": str(tmp_path)})
    with pytest.raises(LaunchError, match="holds no engine"):
        backend_directory(server, lab.home / "server" / "backends", lab.checkpoint, tmp_path / "backends")


# ---- checkpoint and engine


def test_the_engines_dtype_is_the_runs_and_must_equal_a_given_one(lab: Lab) -> None:
    lab.write_engine_limits(dtype="bfloat16")
    assert _artifacts.resolve_dtype(ServeOptions(), lab.engine) == "bfloat16"
    with pytest.raises(LaunchError, match=r"--dtype float32, but the engine .* is bfloat16"):
        _artifacts.resolve_dtype(ServeOptions(dtype="float32"), lab.engine)


def test_more_frames_than_the_engine_takes_are_refused_with_the_number_that_fits(lab: Lab) -> None:
    lab.write_engine_limits(frames=40)
    with pytest.raises(LaunchError, match="at most --max-frames 40"):
        _artifacts.resolve_dtype(ServeOptions(), lab.engine)
    assert _artifacts.resolve_dtype(ServeOptions(num_frames=8, max_frames=40), lab.engine) == "float32"


def test_engine_directory_without_config_is_refused(lab: Lab) -> None:
    (lab.engine / "config.json").unlink()
    with pytest.raises(LaunchError, match=r"config.json does not exist"):
        _artifacts.resolve_dtype(ServeOptions(), lab.engine)


def write_export(lab: Lab, body: str) -> None:
    scripts = lab.home / "build_scripts"
    scripts.mkdir(exist_ok=True)
    (scripts / "export_llm.py").write_text(f"import pathlib, sys\nout = pathlib.Path(sys.argv[-1])\n{body}\n")


def find_engine(lab: Lab, run: Run, checkpoint: Path, report: Callable[[str], None] = lambda line: None) -> Path:
    options = ServeOptions(checkpoint=checkpoint)
    return _artifacts.find_engine(options, checkpoint, Device(None), run, lab.home, Progress(report=report))


def test_without_a_checkpoint_the_demo_model_is_served(lab: Lab) -> None:
    assert _artifacts.find_checkpoint(ServeOptions(), lab.home) == lab.home / "build_scripts" / "demo_model"


def test_engine_is_exported_once_and_again_when_the_export_changes(lab: Lab, checkpoint: Path) -> None:
    lines: list[str] = []
    write_export(lab, "out.mkdir(); (out / 'config.json').write_text('one')")
    with Run() as run:
        first = find_engine(lab, run, checkpoint, lines.append)
        assert find_engine(lab, run, checkpoint, lines.append) == first
        assert len(lines) == 1
        write_export(lab, "out.mkdir(); (out / 'config.json').write_text('two')")
        second = find_engine(lab, run, checkpoint)
    assert ((first / "config.json").read_text(), (second / "config.json").read_text()) == ("one", "two")


def test_failed_export_shows_its_words_and_leaves_nothing_in_the_cache(lab: Lab, checkpoint: Path) -> None:
    write_export(lab, "out.mkdir()\nsys.exit('no space left for the engine')")
    with Run() as run, pytest.raises(LaunchError, match=r"export_llm.py ended with exit code 1[\s\S]*no space left"):
        find_engine(lab, run, checkpoint)
    assert not list((_artifacts.cache_directory() / "engines").glob("*/*"))


def test_checkpoint_that_is_none_is_refused(lab: Lab) -> None:
    options = ServeOptions(checkpoint=lab.checkpoint)
    with Run() as run, pytest.raises(LaunchError, match=r"config.json"):
        _artifacts.find_engine(options, lab.checkpoint, Device(None), run, lab.home, Progress())


def test_home_without_models_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path))
    with pytest.raises(LaunchError, match="INTERNVIDEO_HOME"):
        _artifacts.project_home()


def test_a_cache_that_cannot_be_written_is_named(lab: Lab, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVIDEO_CACHE", "/proc/none")
    with pytest.raises(LaunchError, match=r"the cache cannot be written; \$INTERNVIDEO_CACHE .*/proc/none"):
        start(ServeOptions(checkpoint=checkpoint, device="cpu", **FREE_PORTS))


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("INTERNVIDEO_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(LaunchError, match=r"set \$INTERNVIDEO_CACHE"):
        _artifacts.cache_directory()


def test_the_end_of_a_log_is_shown_with_the_errors_before_it(tmp_path: Path) -> None:
    log = tmp_path / "tritonserver.log"
    log.write_text("I1123 fine\nE1123 failed to load 'vit': no weights\n" + 60 * "| table |\n")
    shown = tail(log).splitlines()
    assert shown[1:3] == ["Last lines of tritonserver.log:", "E1123 failed to load 'vit': no weights"]
    assert (len(shown), "I1123 fine" in shown) == (43, False)


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
    monkeypatch.setattr(_keeper, "_PYTHON_ENVS", tmp_path)
    monkeypatch.setattr(_keeper, "_tritonserver_starts", lambda: iter([now - 300, now - 15]))

    _keeper.remove_remains("0" * 8, since=now - 60)

    left = {path.name.removeprefix("python_env_").rstrip("_") for path in tmp_path.iterdir()}
    assert left == {"before", "foreig", "full"}


def test_compiled_kernels_are_kept_with_the_other_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVIDEO_CACHE", str(tmp_path))
    assert _artifacts.compiler_environment({})["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "kernels")
    assert "TORCHINDUCTOR_CACHE_DIR" not in _artifacts.compiler_environment({"TORCHINDUCTOR_CACHE_DIR": "/elsewhere"})
