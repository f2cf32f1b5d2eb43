"""A real tritonserver with models of a benchmark's own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import tritonclient.grpc as grpcclient

from internvideo_server.launch import build_backends, find_tritonserver, resolve_ports

_READY_S, _END_S = 60, 40


class Laboratory:
    """tritonserver, as a context manager.

    Args:
        directory: For what it needs; its folder ``models`` is the repository.
        options: More of its command line.
        environment: More for its models.

    Attributes:
        url: ``HOST:PORT`` of its gRPC.
    """

    def __init__(self, directory: Path, options: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        triton = find_tritonserver()
        (directory / "none").mkdir()
        build_backends(triton, directory / "none", directory / "backends")
        ports = resolve_ports(dict.fromkeys(("--http-port", "--grpc-port", "--metrics-port"), ("127.0.0.1", 0)))
        self.url = f"127.0.0.1:{ports['--grpc-port']}"
        self._command = [str(triton.binary), f"--model-repository={directory / 'models'}"]
        self._command += [f"--backend-directory={directory / 'backends'}", "--disable-auto-complete-config"]
        self._command += [f"--backend-config=python,shm-region-prefix-name=laboratory_{os.getpid()}_", *options]
        self._command += [f"{flag}={port}" for flag, port in ports.items()]
        self._environment = triton.environment({**os.environ, **(environment or {})})
        self._log = directory / "log"

    def __enter__(self) -> Laboratory:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + _READY_S
        with grpcclient.InferenceServerClient(self.url) as client:
            while True:
                try:
                    if client.is_server_ready():
                        return self
                except Exception:  # not listening yet
                    pass
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise SystemExit(self._log.read_text()[-3000:])
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
