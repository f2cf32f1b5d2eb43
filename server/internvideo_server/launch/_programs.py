"""The programs of a run: tritonserver and the adapter; how each is started and how it tells that it is ready."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from internvideo_server.engine_directory import world_size
from internvideo_server.settings import ServeSettings, environment_of

from ._artifacts import compiler_environment
from ._commands import ADAPTER_ENVIRONMENT, ADAPTER_EXIT_S, TRITON_EXIT_S, adapter_command, adapter_settings, triton_command
from ._mpi import mpi_command, mpi_environment
from ._processes import ProgramSpec, Run
from ._readiness import http_refusal, triton_refusal
from ._secret import TritonSecret
from ._supervisor import shm_prefix
from ._tritonserver import TritonServer


@dataclass(frozen=True)
class Programs:
    """What runs, in the order of its start, and what tells why each is not ready yet (None when it is)."""

    specs: list[ProgramSpec]
    checks: dict[str, Callable[[], str | None]]

    @property
    def logs(self) -> dict[str, Path]:
        """Program -> log file."""
        return {spec.name: spec.log for spec in self.specs if spec.log}


def programs_of(
    options: ServeSettings,
    server: TritonServer,
    run: Run,
    directory: Path,
    backends: Path,
    engine: Path,
    ports: Mapping[str, int],
    urls: Mapping[str, str],
    pools: Mapping[int, int],
    secret: TritonSecret,
    examples: Path | None,
    environ: Mapping[str, str],
) -> Programs:
    """Those of one run.

    Args:
        options: The settings.
        server: The tritonserver.
        run: Gives the mark.
        directory: Holds the rendered repository; takes the logs.
        backends: The backend directory.
        engine: The engine directory.
        ports: Flag -> port.
        urls: As ``endpoint_urls`` gives them.
        pools: GPU -> bytes for tensors between the models.
        secret: Of the run.
        examples: What the page offers; None: nothing.
        environ: What they inherit.

    Raises:
        LaunchError: The engine needs mpirun, and there is none.
    """
    repository = directory / "model_repository"
    environment = server.environment(environ)
    environment |= compiler_environment(environment)
    command = triton_command(server, repository, backends, options, ports, run.id, pools, secret)
    told = adapter_settings(options, ports, urls["grpc"], engine, examples, directory)
    specs = [
        ProgramSpec(
            "tritonserver",
            mpi_command(command, world_size(engine), shm_prefix(run.id), TRITON_EXIT_S, environment),
            {**environment, **mpi_environment(environment), "INTERNVIDEO_LOG_DIRECTORY": str(directory)},
            directory / "tritonserver.log",
            grace_s=TRITON_EXIT_S + 4.0,
            hidden=secret.value,
        ),
        ProgramSpec(
            "adapter",
            adapter_command(told),
            ADAPTER_ENVIRONMENT | environment_of(told, environ),
            directory / "adapter.log",
            grace_s=options.drain_timeout + ADAPTER_EXIT_S,
            stop_signal=signal.SIGINT,
        ),
    ]
    checks = {"tritonserver": triton_refusal(urls), "adapter": http_refusal(f"{urls['adapter']}/health/ready")}
    return Programs(specs, checks)
