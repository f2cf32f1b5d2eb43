"""The backend directory of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from ._errors import LaunchError
from ._tritonserver import TritonServer


def backend_directory(server: TritonServer, embedded: Path, engine: Path, target: Path) -> Path:
    """The directory for ``--backend-directory``, chosen by what the engine directory holds.

    An engine of TensorRT-LLM (``rank*.engine``) runs on the server's own backends. For the embedded engine (``llama/``) a
    directory is built: the python backend with the stub that fits, and the Python-based backend ``tensorrtllm``.

    Args:
        server: The server to run.
        embedded: The project's ``server/backends``.
        engine: The engine directory.
        target: Where to build.

    Raises:
        LaunchError: The engine is TensorRT-LLM's, and this server has no such backend; or the directory holds no engine.
    """
    if any(engine.glob("rank*.engine")):
        if not server.has_tensorrt_llm:
            raise LaunchError(
                f"{engine} holds a TensorRT-LLM engine, but {server.binary} has no tensorrtllm backend: run inside NVIDIA's "
                "container tritonserver:*-trtllm-python-py3, or use an engine directory made by build_scripts/export_llm.py"
            )
        return server.backends
    if not (engine / "llama" / "config.json").is_file():
        raise LaunchError(f"{engine} holds no engine: neither llama/config.json nor rank*.engine")
    build_backends(server, embedded, target)
    return target


def build_backends(server: TritonServer, embedded: Path, target: Path) -> None:
    """Copy the python backend, its stub and the Python-based backends below ``embedded`` into ``target``."""
    shutil.copytree(server.backends / "python", target / "python", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(server.python_stub, target / "python" / server.python_stub.name)
    for backend in sorted(path for path in embedded.iterdir() if (path / "model.py").is_file()):
        shutil.copytree(backend, target / backend.name, ignore=shutil.ignore_patterns("__pycache__"))
