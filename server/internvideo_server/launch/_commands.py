"""The command lines of a run, and the addresses that follow from them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from internvideo_server.settings import AdapterSettings, ServeSettings, arguments_of

from ._run_state import STATE_FILE
from ._secret import SECRET_FILE, TritonSecret
from ._supervisor import shm_prefix
from ._tritonserver import TritonServer

TRITON_EXIT_S = 8  # how long Triton waits for requests in flight
ADAPTER_EXIT_S = 3.0
STATE = "state"  # folder of a run: what the adapter keeps


def triton_command(
    server: TritonServer,
    repository: Path,
    backends: Path,
    options: ServeSettings,
    ports: Mapping[str, int],
    run_id: str,
    pools: Mapping[int, int],
    secret: TritonSecret,
) -> list[str]:
    """The command line of tritonserver; ``pools``: GPU -> bytes there for tensors between the models."""
    http = ports.get("--triton-http-port")
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
        *(["--allow-http=false"] if http is None else [f"--http-address={options.triton_host}", f"--http-port={http}"]),
        f"--grpc-address={options.triton_host}",
        f"--grpc-port={ports['--triton-grpc-port']}",
        f"--metrics-address={options.triton_metrics_host}",
        f"--metrics-port={ports['--triton-metrics-port']}",
        *secret.flags(http=http is not None),
    ]
    return command + [f"--cuda-memory-pool-byte-size={gpu}:{size}" for gpu, size in pools.items()]


def adapter_settings(
    settings: ServeSettings, ports: Mapping[str, int], grpc_url: str, engine: Path, examples: Path | None, directory: Path
) -> AdapterSettings:
    """What the adapter is told; ``examples``: what its page offers, None: nothing; ``directory``: of the run."""
    given = ((name, getattr(settings, name, None)) for name in AdapterSettings.model_fields)
    shared = {name: value for name, value in given if value is not None}
    own = {"port": ports["--port"], "triton": grpc_url, "tokenizer": engine / "tokenizer.json", "examples": examples}
    own |= {"state_directory": directory / STATE, "triton_secret_file": directory / SECRET_FILE}
    return AdapterSettings(**(shared | own | {"run_state": directory / STATE_FILE}))


#: gRPC reads it when it is imported. Its event engine hands each message through one more thread: a fifth of the adapter's CPU.
ADAPTER_ENVIRONMENT = {"GRPC_EXPERIMENTS": "-event_engine_client"}


def adapter_command(settings: AdapterSettings) -> list[str]:
    """The command line of the adapter, for an environment without other settings (``environment_of``)."""
    return [sys.executable, "-P", "-m", "internvideo_client.adapter", *arguments_of(settings)]


def serve_command(settings: ServeSettings) -> list[str]:
    """The command line of a server, for an environment without other settings (``environment_of``)."""
    return [sys.executable, "-P", "-m", "internvideo_client.cli", "serve", *arguments_of(settings)]


def endpoint_urls(options: ServeSettings, ports: dict[str, int]) -> dict[str, str]:
    """Addresses to connect to; a server that listens everywhere is reached over the loopback."""
    adapter = f"{'https' if options.ssl_certfile else 'http'}://{reached(options.host, ports['--port'])}"
    urls = {"adapter": adapter, "openai": f"{adapter}/v1"}
    if "--triton-http-port" in ports:
        urls["http"] = f"http://{reached(options.triton_host, ports['--triton-http-port'])}"
    metrics = reached(options.triton_metrics_host, ports["--triton-metrics-port"])
    return urls | {"grpc": reached(options.triton_host, ports["--triton-grpc-port"]), "metrics": f"http://{metrics}/metrics"}


def reached(host: str, port: int) -> str:
    """Host and port to connect to, of one to listen on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing listens by this line
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
