"""The command lines of a run, and the addresses that follow from them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from ._keeper import shm_prefix
from ._options import ServeOptions
from ._tritonserver import TritonServer

TRITON_EXIT_S = 8  # how long Triton waits for requests in flight
ADAPTER_EXIT_S = 3.0
UI_HOST = "127.0.0.1"


def triton_command(
    server: TritonServer,
    repository: Path,
    backends: Path,
    host: str,
    ports: dict[str, int],
    run_id: str,
    pools: Mapping[int, int],
) -> list[str]:
    """The command line of tritonserver; ``pools``: GPU -> bytes there for tensors between the models."""
    command = [
        str(server.binary),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        # The configs are complete; completing them would start, and end, a stub of each Python model first.
        "--disable-auto-complete-config",
        # A model whose stub died is cured by unload and load, which need explicit control.
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix(run_id)}",
        f"--exit-timeout-secs={TRITON_EXIT_S}",
        f"--http-address={host}",
        f"--http-port={ports['--triton-http-port']}",
        f"--grpc-address={host}",
        f"--grpc-port={ports['--triton-grpc-port']}",
        f"--metrics-address={host}",
        f"--metrics-port={ports['--triton-metrics-port']}",
    ]
    return command + [f"--cuda-memory-pool-byte-size={gpu}:{size}" for gpu, size in pools.items()]


def adapter_command(options: ServeOptions, ports: dict[str, int], grpc_url: str, engine: Path) -> list[str]:
    arguments = [
        "--host",
        options.host,
        "--port",
        str(ports["--port"]),
        "--triton",
        grpc_url,
        "--tokenizer",
        str(engine / "tokenizer.json"),
        "--request-timeout",
        str(options.request_timeout_s),
    ]
    return [sys.executable, "-P", "-m", "internvideo_client.adapter", *arguments]


def ui_command(port: int, openai_url: str) -> list[str]:
    arguments = ["ui", "--url", openai_url, "--host", UI_HOST, "--port", str(port)]
    return [sys.executable, "-P", "-m", "internvideo_client.cli", *arguments]


def endpoint_urls(options: ServeOptions, ports: dict[str, int]) -> dict[str, str]:
    """Addresses to connect to; a server that listens everywhere is reached over the loopback."""

    def reach(host: str, flag: str) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing listens by this line
        return f"[{host}]:{ports[flag]}" if ":" in host else f"{host}:{ports[flag]}"

    adapter = f"http://{reach(options.host, '--port')}"
    return {
        "adapter": adapter,
        "openai": f"{adapter}/v1",
        **({"page": f"http://{UI_HOST}:{ports['--ui-port']}"} if "--ui-port" in ports else {}),
        "http": f"http://{reach(options.triton_host, '--triton-http-port')}",
        "grpc": reach(options.triton_host, "--triton-grpc-port"),
        "metrics": f"http://{reach(options.triton_host, '--triton-metrics-port')}/metrics",
    }
