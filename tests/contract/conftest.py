"""The server that is asked: ``CONTRACT_TRITON=host:port`` (gRPC), else two of our own, with random weights and the demo model.

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


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The small trained model: unlike random weights, it is certain of nearly every token."""
    run = tmp_path_factory.mktemp("demo") / "run"
    with start(ServeSettings(device="cpu", run_directory=run, **FREE_PORTS)) as running:
        yield running


@pytest.fixture(scope="session", params=["there"] if ELSEWHERE else ["random", "demo"])
def engine(request: pytest.FixtureRequest) -> EngineClient:
    """The model `tensorrt_llm` of the server under test."""
    directory, file = (os.environ.get(name) for name in ("CONTRACT_ENGINE", "CONTRACT_SECRET"))
    if ELSEWHERE:
        headers = TritonSecret.read(Path(file)).grpc_headers if file else {}
        return EngineClient(ELSEWHERE, Path(directory) if directory else None, headers)
    own: RunningServer = request.getfixturevalue("server" if request.param == "random" else "demo_server")
    return EngineClient(own.grpc_url, None, own.secret.grpc_headers)
