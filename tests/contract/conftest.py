"""The server that is asked: ``CONTRACT_TRITON=host:port`` (gRPC), else the session's own.

``CONTRACT_ENGINE`` names a directory with the engine's ``config.json`` where the path in the server's configuration is not
readable here. ``CONTRACT_PATIENCE_S`` (60) is how long a response may take.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from internvideo_server.launch import RunningServer
from tests.contract.engine_client import EngineClient


@pytest.fixture(scope="session")
def triton_url(request: pytest.FixtureRequest) -> str:
    """``host:port`` of the gRPC endpoint under test."""
    if url := os.environ.get("CONTRACT_TRITON"):
        return url
    server: RunningServer = request.getfixturevalue("server")
    return server.grpc_url


@pytest.fixture(scope="session")
def engine(triton_url: str) -> EngineClient:
    """The model `tensorrt_llm` of that server."""
    directory = os.environ.get("CONTRACT_ENGINE")
    return EngineClient(triton_url, Path(directory) if directory else None)
