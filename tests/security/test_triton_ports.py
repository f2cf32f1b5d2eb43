"""What a stranger who reaches Triton's own ports can do: ask for inference, and nothing else."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from internvideo_server.launch import RunningServer, TritonSecret, _supervisor, start
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS, until
from tests.launch_lab import Lab

pytestmark = pytest.mark.server

EVIL = b"""
class TritonPythonModel:
    def initialize(self, args):
        open({path!r}, "w").close()
"""
EVIL_CONFIG = '{{"backend": "python", "max_batch_size": 0, "output": [{{"name": "O", "data_type": "TYPE_INT32", "dims": [1]}}]}}'


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real tritonserver with trivial models, its HTTP port switched on."""
    root = tmp_path_factory.mktemp("ports")
    lab = Lab(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERNVIDEO_HOME", str(lab.home))
        patch.setenv("INTERNVIDEO_CACHE", str(root / "cache"))
        patch.setenv("PYTHONPATH", str(lab.python_path))
        options = ServeSettings(
            checkpoint=lab.checkpoint,
            engine=lab.engine,
            device="cpu",
            run_directory=root / "run",
            triton_http_port=0,
            **FREE_PORTS,
        )
        running = start(options)
    with running:
        yield running


def run_id_of(server: RunningServer) -> str:
    """The mark in the environment of its tritonserver."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if f"--model-repository={server.repository}" in process.cmdline():
                return process.environ()[_supervisor.RUN_MARK]
    raise AssertionError("there is no tritonserver")


def processes(server: RunningServer) -> list[psutil.Process]:
    """tritonserver, its stubs and the adapter."""
    return [psutil.Process(pid) for pid in _supervisor.marked_processes(run_id_of(server))]


def answers(server: RunningServer) -> bool:
    given = grpcclient.InferInput("IN", [1, 1], "INT32").set_data_from_numpy(np.ones((1, 1), np.int32))
    with grpcclient.InferenceServerClient(server.grpc_url) as triton:
        return triton.infer("vit", [given]).as_numpy("CONFIG") is not None


def evil_files(path: Path) -> dict[str, bytes]:
    return {"file:1/model.py": EVIL.replace(b"{path!r}", repr(str(path)).encode())}


CONTROL: dict[str, Callable[[Any, dict[str, str] | None], Any]] = {
    "load": lambda triton, headers: triton.load_model("vit", headers=headers),
    "unload": lambda triton, headers: triton.unload_model("absent", headers=headers),
    "index": lambda triton, headers: triton.get_model_repository_index(headers=headers),
    "model config": lambda triton, headers: triton.get_model_config("vit", headers=headers),
    "statistics": lambda triton, headers: triton.get_inference_statistics(headers=headers),
    "read log settings": lambda triton, headers: triton.get_log_settings(headers=headers),
    "log settings": lambda triton, headers: triton.update_log_settings({"log_verbose_level": 0}, headers=headers),
    "trace": lambda triton, headers: triton.update_trace_settings(settings={"trace_level": ["OFF"]}, headers=headers),
    "memory": lambda triton, headers: triton.get_system_shared_memory_status(headers=headers),
    "cuda memory": lambda triton, headers: triton.get_cuda_shared_memory_status(headers=headers),
    "free memory": lambda triton, headers: triton.unregister_system_shared_memory(headers=headers),
}


@pytest.mark.parametrize("name", CONTROL)
def test_control_needs_the_secret_of_the_run(ports: RunningServer, name: str) -> None:
    with grpcclient.InferenceServerClient(ports.grpc_url) as triton:
        for headers in (None, TritonSecret("0" * 64).grpc_headers, {"internvideo": ports.secret.value}):
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                CONTROL[name](triton, headers)
        with contextlib.suppress(InferenceServerException) as caught:
            CONTROL[name](triton, ports.secret.grpc_headers)
        assert caught is None or "restricted" not in str(caught)


def test_a_segment_of_a_stub_cannot_be_registered(ports: RunningServer) -> None:
    [segment, *_] = Path("/dev/shm").glob(f"{_supervisor.shm_prefix(run_id_of(ports))}*")
    with (
        grpcclient.InferenceServerClient(ports.grpc_url) as triton,
        pytest.raises(InferenceServerException, match="This protocol is restricted"),
    ):
        triton.register_system_shared_memory("stolen", f"/{segment.name}", 1024)


def test_loading_a_model_over_grpc_runs_no_code(ports: RunningServer, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with grpcclient.InferenceServerClient(ports.grpc_url) as triton:
        with pytest.raises(InferenceServerException, match="This protocol is restricted"):
            triton.load_model("evil", config=EVIL_CONFIG.format(), files=evil_files(ran))
        assert not ran.exists()
        # The same call with the secret does run it: the refusal above is what holds.
        triton.load_model("evil", headers=ports.secret.grpc_headers, config=EVIL_CONFIG.format(), files=evil_files(ran))
        assert ran.exists()
        triton.unload_model("evil", headers=ports.secret.grpc_headers)


def test_loading_a_model_from_a_web_page_runs_no_code(ports: RunningServer, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    source = base64.b64encode(evil_files(ran)["file:1/model.py"]).decode()
    body = json.dumps({"parameters": {"config": EVIL_CONFIG.format(), "file:1/model.py": source}})
    headers = {"Content-Type": "text/plain", "Origin": "https://elsewhere.example", "Host": "elsewhere.example"}
    answer = httpx2.post(f"{ports.http_url}/v2/repository/models/evil/load", content=body, headers=headers, trust_env=False)
    assert answer.status_code == 403
    assert not ran.exists()
    for path in ("/v2/repository/index", "/v2/systemsharedmemory/region/a/register", "/v2/trace/setting", "/v2/logging"):
        assert httpx2.post(ports.http_url + path, content="{}", headers=headers, trust_env=False).status_code == 403


def test_a_flood_of_chunks_to_a_restricted_path_is_refused_and_the_server_goes_on(ports: RunningServer) -> None:
    """To a path that is open it ends Triton 2.51 (tried): HTTP is off by default."""
    url = urlsplit(ports.http_url or "")
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"POST /v2/repository/models/a/load HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(60):
            connection.sendall(b"1\r\na\r\n" * 10_000)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 403")
    assert answers(ports)
    assert ports.poll() is None


def test_a_stream_with_the_error_header_leaves_the_server_alive(ports: RunningServer) -> None:
    """No restriction covers the header: streams are inference."""
    given = grpcclient.InferInput("IN", [1, 2], "INT32").set_data_from_numpy(np.ones((1, 2), np.int32))  # of a wrong shape
    for _ in range(3):
        with grpcclient.InferenceServerClient(ports.grpc_url) as triton:
            triton.start_stream(lambda result, error: None, headers={"triton_grpc_error": "true"})
            for _ in range(6):
                triton.async_stream_infer("vit", [given])
            triton.stop_stream()
    assert answers(ports)
    assert ports.poll() is None


def test_the_secret_is_in_no_command_line_and_in_a_private_file(ports: RunningServer) -> None:
    file = ports.repository.with_name("triton_secret")
    assert file.stat().st_mode & 0o777 == 0o600
    assert TritonSecret.read(file) == ports.secret
    secret = ports.secret.value.encode()
    until(lambda: not any(secret in Path(f"/proc/{p.pid}/cmdline").read_bytes() for p in processes(ports)), "it is to be seen")


def test_nothing_of_a_run_can_be_read_by_other_users(ports: RunningServer) -> None:
    directory = ports.repository.parent
    assert list(directory.glob("*.log"))
    for log in directory.glob("*.log"):
        assert log.stat().st_mode & 0o077 == 0
    segments = list(Path("/dev/shm").glob(f"{_supervisor.shm_prefix(run_id_of(ports))}*"))
    assert len(segments) >= 3  # more where a model was loaded anew
    until(lambda: not any(segment.stat().st_mode & 0o077 for segment in segments), "a segment can be read by others")


def test_by_default_a_run_listens_on_loopback_and_not_for_http(server: RunningServer) -> None:
    assert server.http_url is None
    listening = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in processes(server)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    known = {urlsplit(url).port for url in (server.adapter_url, server.metrics_url, f"//{server.grpc_url}")}
    assert {port for _, port in listening} == known
    assert {address for address, _ in listening} == {"127.0.0.1"}
