"""The server that is asked: ``CONTRACT_TRITON=host:port`` (gRPC), else two of our own, with random weights and the demo model.

``CONTRACT_LLM_ENGINE=vllm``: one of our own, the demo model on vLLM, which takes no heads as small as the random one's.

``CONTRACT_ENGINE`` names a directory with the engine's ``config.json`` where the path in the server's configuration is not
readable here. ``CONTRACT_SECRET`` names the file with the secret (``triton_secret`` in the run directory) that a server of
``internvideo serve`` asks for. ``CONTRACT_PATIENCE_S`` (60) is how long a response may take.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from internvideo_server.launch import RunningServer, TritonSecret, start
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS
from tests.contract.engine_client import EngineClient

ELSEWHERE = os.environ.get("CONTRACT_TRITON")
LLM_ENGINE = os.environ.get("CONTRACT_LLM_ENGINE", "embedded")
# vLLM would take most of the memory, and a minute to compile.
VLLM_ON_A_CPU = ("gpu_memory_utilization=0.2", "kv_cache_memory_bytes=1073741824", "enforce_eager=true")
SERVERS = ["there"] if ELSEWHERE else ["random", "demo"] if LLM_ENGINE == "embedded" else ["demo"]


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The small trained model: unlike random weights, it is certain of nearly every token."""
    run = tmp_path_factory.mktemp("demo") / "run"
    vllm = {"engine_arg": VLLM_ON_A_CPU} if LLM_ENGINE == "vllm" else {}
    with start(ServeSettings(device="cpu", llm_engine=LLM_ENGINE, run_directory=run, **vllm, **FREE_PORTS)) as running:
        yield running


@pytest.fixture(scope="session", params=SERVERS)
def engine(request: pytest.FixtureRequest) -> EngineClient:
    """The model `tensorrt_llm` of the server under test."""
    directory, file = (os.environ.get(name) for name in ("CONTRACT_ENGINE", "CONTRACT_SECRET"))
    if ELSEWHERE:
        headers = TritonSecret.read(Path(file)).grpc_headers if file else {}
        return EngineClient(ELSEWHERE, Path(directory) if directory else None, headers)
    own: RunningServer = request.getfixturevalue("server" if request.param == "random" else "demo_server")
    return EngineClient(own.grpc_url, None, own.secret.grpc_headers)
