"""Which tritonserver is used, what it lacks, and its backends."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from internvideo_server.launch import (
    LaunchError,
    _tritonserver,
    find_tritonserver,
)
from internvideo_server.launch._backends import backend_directory
from internvideo_server.launch._tritonserver import TritonServer
from tests.launch_lab import Lab


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
