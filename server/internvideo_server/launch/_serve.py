"""Start the whole system, wait until it answers, stop it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

from ..limits import EngineLimits
from ._artifacts import compiler_environment, find_checkpoint, find_engine, project_home, resolve_dtype
from ._backends import backend_directory
from ._commands import ADAPTER_EXIT_S, TRITON_EXIT_S, UI_HOST, adapter_command, endpoint_urls, triton_command, ui_command
from ._engine import cuda_pool_bytes, world_size
from ._errors import LaunchError, refused_by_the_system
from ._keeper import shm_prefix
from ._mpi import mpi_command, mpi_environment
from ._options import ServeOptions
from ._ports import resolve_ports
from ._processes import Ended, Keeper, ProgramSpec, Run, tail
from ._progress import InterruptedStartError, Progress, shown
from ._readiness import wait_until_ready
from ._repository import RunSettings, render_repository
from ._tritonserver import find_tritonserver, resolve_device


class RunningServer:
    """A started system (context manager; leaving it stops everything).

    Attributes:
        openai_url: Base URL of the OpenAI API, ``http://host:port/v1``.
        page_url: The web page for people, None where there is none.
        adapter_url: ``http://host:port`` (health, metrics of the adapter).
        http_url: Triton's HTTP endpoint, ``http://host:port``.
        grpc_url: Triton's gRPC endpoint as tritonclient takes it, ``host:port``.
        metrics_url: Triton's Prometheus page.
        repository: The rendered model repository.
        backends: The backend directory.
        engine: The engine directory.
        logs: Log files by program (``tritonserver``, ``adapter``).
    """

    def __init__(
        self, stack: ExitStack, keeper: Keeper, urls: dict[str, str], paths: dict[str, Path], logs: dict[str, Path]
    ) -> None:
        self._stack, self._keeper, self.logs = stack, keeper, logs
        self.openai_url, self.adapter_url = urls["openai"], urls["adapter"]
        self.page_url = urls.get("page")
        self.http_url, self.grpc_url, self.metrics_url = urls["http"], urls["grpc"], urls["metrics"]
        self.repository, self.backends, self.engine = paths["repository"], paths["backends"], paths["engine"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def poll(self) -> Ended | None:
        """What ended by itself and so ended the run, None while all is well."""
        return self._keeper.poll()

    def stop(self) -> None:
        """End the adapter, then tritonserver, and remove what they leave. Idempotent."""
        self._stack.close()


def start(options: ServeOptions, report: Callable[[str], None] | None = None) -> RunningServer:
    """Start everything and return when it answers. For tests and the demo; ``serve`` is the blocking form.

    Args:
        options: The settings.
        report: Called with a line for people at each step.

    Raises:
        LaunchError: Something is missing, does not fit, or did not start; nothing is left running.
    """
    return _start(options, Progress(report=report) if report else Progress())


def serve(options: ServeOptions) -> int:
    """Run the system until SIGINT, SIGTERM or SIGHUP (main thread only); progress and URLs go to the terminal.

    Returns:
        The exit code: 0 after a signal, 1 when it could not start or a part of it ended by itself.
    """
    stop = threading.Event()
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it stays ignored
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, lambda number, frame: stop.set()) for number in numbers}
    try:
        began = time.monotonic()
        progress = Progress(
            report=lambda line: console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {escape(line)}"),
            interrupted=stop.is_set,
        )
        with _start(options, progress) as server:
            console.print(_summary(server), soft_wrap=True)
            while not stop.wait(0.2):
                if ended := server.poll():
                    last = tail(server.logs.get(ended.name))
                    errors.print(f"[red]{escape(str(ended))}[/]; everything was stopped.{escape(last)}", soft_wrap=True)
                    return 1
            console.print("stopping")
        return 0
    except InterruptedStartError:
        return 0
    except LaunchError as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _summary(server: RunningServer) -> str:
    page = f"\n  web page        {server.page_url}" if server.page_url else ""
    return (
        f"\n  OpenAI API      {server.openai_url}\n  Triton HTTP     {server.http_url}\n  Triton gRPC     {server.grpc_url}\n"
        f"  Triton metrics  {server.metrics_url}\n  repository      {server.repository}{page}\n\nReady. Ctrl-C stops."
    )


def _start(options: ServeOptions, progress: Progress) -> RunningServer:
    home = project_home()
    device = resolve_device(options.device)
    vit_device = device if options.vit_device is None else resolve_device(options.vit_device)
    server = find_tritonserver()
    ports = resolve_ports(
        {
            "--port": (options.host, options.port),
            "--triton-http-port": (options.triton_host, options.triton_http_port),
            "--triton-grpc-port": (options.triton_host, options.triton_grpc_port),
            "--triton-metrics-port": (options.triton_host, options.triton_metrics_port),
            **({} if options.ui_port is None else {"--ui-port": (UI_HOST, options.ui_port)}),
        }
    )
    with refused_by_the_system(), ExitStack() as stack:
        run = stack.enter_context(Run())
        checkpoint = find_checkpoint(options, home)
        engine = find_engine(options, checkpoint, device, run, home, progress)
        settings = RunSettings(
            checkpoint=checkpoint,
            engine=engine,
            device=device,
            dtype=resolve_dtype(options, engine),
            num_frames=options.num_frames,
            max_frames=options.max_frames,
            allowed_local_media_path=options.allowed_local_media_path,
            decode_workers=options.decode_workers,
            max_queue_size=options.max_queue_size,
            vit_device=vit_device,
            vit_quantization=options.vit_quantization,
            kv_cache_fraction=options.kv_cache_fraction,
            video_reader=options.video_reader,
            frame_cache_mb=options.frame_cache_mb,
            embedding_cache_mb=options.embedding_cache_mb,
            request_timeout_s=options.request_timeout_s,
            cuda_region_count=options.cuda_region_count,
            cuda_region_bytes=(options.cuda_region_mb or 0) << 20 or EngineLimits.from_engine_dir(engine).table_bytes,
        )
        directory = _output_directory(options, run)
        models = render_repository(home / "model_repository", directory / "model_repository", settings)
        backends = backend_directory(server, home / "server" / "backends", engine, directory / "backends")

        gpus = {each.index for each in (vit_device, device) if each.index is not None}
        pools = dict.fromkeys(sorted(gpus), cuda_pool_bytes(settings.cuda_region_count, settings.cuda_region_bytes))
        command = triton_command(server, directory / "model_repository", backends, options.triton_host, ports, run.id, pools)
        environment = server.environment(os.environ)
        environment |= compiler_environment(environment)
        triton = ProgramSpec(
            "tritonserver",
            mpi_command(command, world_size(engine), shm_prefix(run.id), TRITON_EXIT_S, environment),
            {**environment, **mpi_environment(environment)},
            directory / "tritonserver.log",
            grace_s=TRITON_EXIT_S + 4.0,
        )
        urls = endpoint_urls(options, ports)
        adapter = ProgramSpec(
            "adapter",
            adapter_command(options, ports, urls["grpc"], engine),
            os.environ,
            directory / "adapter.log",
            ADAPTER_EXIT_S,
        )
        progress.report(f"starting tritonserver ({device.name}, {settings.dtype}) and the OpenAI adapter")
        programs = [triton, adapter]
        health = {"tritonserver": f"{urls['http']}/v2/health/ready", "adapter": f"{urls['adapter']}/health/ready"}
        if "page" in urls:
            # What people upload lies in the run's directory, and goes with it even where the page was killed.
            page_environment = {**os.environ, "TMPDIR": str(run.directory)}
            command = ui_command(ports["--ui-port"], urls["openai"])
            programs.append(ProgramSpec("page", command, page_environment, directory / "page.log", ADAPTER_EXIT_S))
            health["page"] = urls["page"]
        keeper = run.keep(programs)
        stack.callback(keeper.stop)
        logs = {program.name: program.log for program in programs if program.log}
        if options.verbose:
            stack.enter_context(shown(list(logs.values())))
        wait_until_ready(
            keeper,
            health,
            logs,
            models,
            options.ready_timeout_s,
            progress,
        )
        paths = {"repository": directory / "model_repository", "backends": backends, "engine": engine}
        return RunningServer(stack.pop_all(), keeper, urls, paths, logs)


def _output_directory(options: ServeOptions, run: Run) -> Path:
    """Where this run's files go: the given directory, which must be new or empty, or the run's own."""
    given = options.run_directory
    directory = run.directory if given is None else given.resolve()
    if not str(directory).isascii():
        flag = "the temporary directory ($TMPDIR)" if given is None else "--run-directory"
        raise LaunchError(f"{flag} {directory} has characters beyond ASCII, and Triton's Python models would not be found there")
    if given is not None:
        with refused_by_the_system("--run-directory"):
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise LaunchError(f"--run-directory {directory} is not empty")
    return directory
