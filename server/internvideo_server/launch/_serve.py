"""Start the whole system, wait until it answers, stop it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from internvideo_server.engine_directory import cuda_pool_bytes
from internvideo_server.gpus import find_gpus
from internvideo_server.limits import EngineLimits
from internvideo_server.memory import available_memory
from internvideo_server.settings import ServeSettings

from ._artifacts import find_checkpoint, page_examples, project_home, resolve_dtype
from ._backends import backend_directory
from ._checks import check_host, check_settings
from ._commands import ADAPTER_EXIT_S, STATE, endpoint_urls
from ._device import resolve_device
from ._engine_cache import exported_engine
from ._errors import LaunchError, refused_by_the_system
from ._length import settle_length
from ._model_control import ModelControl
from ._mps import gpu_to_share, mps_service
from ._plain_path import plain_path
from ._ports import resolve_ports
from ._processes import Run
from ._programs import programs_of
from ._progress import Progress, shown
from ._readiness import deafness, wait_until_ready
from ._recovery import Recovery
from ._registry import RunRecord, publish
from ._repository import RunPlan, render_repository
from ._restarts import Restarts
from ._run_state import RunState
from ._running import RunningServer
from ._secret import SECRET_FILE, TritonSecret
from ._terminal import Terminal
from ._tritonserver import find_tritonserver


def start(options: ServeSettings, report: Callable[[str], None] | None = None) -> RunningServer:
    """Start everything and return when it answers. For tests and the demo; ``serve`` is the blocking form.

    Args:
        options: The settings.
        report: Called with a line for people at each step.

    Raises:
        LaunchError: Something is missing, does not fit, or did not start; nothing is left running.
    """
    return _start(options, Progress(report=report) if report else Progress())


def serve_one(options: ServeSettings, terminal: Terminal) -> int:
    """Run the system until SIGINT or SIGTERM (`stop_signals` has all of them); progress and URLs go to the terminal.

    Returns:
        The exit code: 0 after a signal, 3 when something died more often than ``max_restarts``.

    Raises:
        LaunchError: It could not start; nothing is left running.
    """
    with _start(options, terminal.progress) as server:
        lines = {
            "OpenAI API": server.openai_url,
            "web page": server.page_url if options.page else None,
            "Triton gRPC": server.grpc_url,
            "Triton HTTP": server.http_url,
            "Triton metrics": server.metrics_url,
            "repository": server.repository,
            "Triton's secret": server.repository.with_name(SECRET_FILE),
        }
        terminal.ready(lines, options.name)
        while not terminal.signals.stop.wait(0.2):
            if reason := server.poll():
                return terminal.gave_up(reason)
            if terminal.signals.reload():
                server.reload()
        terminal.stopping(options.drain_timeout)
        server.drain(options.drain_timeout + ADAPTER_EXIT_S, terminal.signals.hurry.is_set)
    return 0


def _start(options: ServeSettings, progress: Progress) -> RunningServer:
    home = project_home()
    device = resolve_device(options.device)
    vit_device = device if options.vit_device is None else resolve_device(options.vit_device)
    server = find_tritonserver()
    check_settings(options)
    check_host(options, device, vit_device)
    ports = resolve_ports(options.listeners)
    with refused_by_the_system(), ExitStack() as stack, private_files():
        run = stack.enter_context(Run())
        record = RunRecord(run.id, options.name or run.id, os.getpid(), run.since)
        publish(record, run.directory)
        directory = stack.enter_context(plain_path(output_directory(options, run)))
        checkpoint = find_checkpoint(options, home)
        options, told = settle_length(options, checkpoint, device, vit_device, find_gpus(os.environ), available_memory())
        progress.report(told)
        if options.engine is None:
            engine = stack.enter_context(exported_engine(options, checkpoint, device, run, directory, progress))
        else:
            engine = options.engine.resolve()
        files = directory / STATE / "files"
        files.mkdir(mode=0o700, parents=True)
        plan = RunPlan(options, checkpoint, engine, resolve_dtype(options, engine), device, vit_device, files)
        models = render_repository(home / "model_repository", directory / "model_repository", plan)
        backends = backend_directory(server, home / "server" / "backends", engine, directory / "backends")
        _make_private(directory)

        gpus = {each.index for each in (vit_device, device) if each.index is not None}
        region = options.region_bytes(EngineLimits.from_engine_dir(engine).table_bytes)
        pools = dict.fromkeys(sorted(gpus), cuda_pool_bytes(options.cuda_region_count, region))
        secret, state, urls = TritonSecret.create(directory), RunState(directory), endpoint_urls(options, ports)
        publish(replace(record, directory=str(directory.resolve()), urls=urls, models=models), run.directory)
        examples = page_examples(options, home)
        gpu = gpu_to_share(options.mps, plan)
        mps = stack.enter_context(mps_service(run, gpu, needed=options.mps == "on", report=progress.report))
        environ = {**os.environ, **mps}
        programs = programs_of(options, server, run, directory, backends, engine, ports, urls, pools, secret, examples, environ)
        if "http" in urls:
            progress.warn(f"{urls['http']}: a request of many small chunks ends Triton 2.51; gRPC alone is safer")
        progress.report(f"starting tritonserver ({device.name}, {plan.dtype}) and the OpenAI adapter")
        supervisor = run.supervise(programs.specs)
        stack.callback(supervisor.stop)
        if options.verbose:
            stack.enter_context(shown([*programs.logs.values(), *(directory / f"{model}.log" for model in models)]))
        wait_until_ready(supervisor, programs.checks, programs.logs, models, options.ready_timeout, progress)
        control, restarts = ModelControl(urls["grpc"], secret), Restarts(options.max_restarts)
        is_deaf = deafness(f"{urls['adapter']}/health/live")
        recovery = Recovery(
            supervisor, programs.checks, is_deaf, control, state, directory, restarts, options.ready_timeout, progress.warn
        )
        stack.callback(recovery.close)
        recovery.begin()
        paths = {"repository": directory / "model_repository", "backends": backends, "engine": engine}
        return RunningServer(stack.pop_all(), supervisor, recovery, urls, paths, programs.logs, secret, run.id)


def _make_private(directory: Path) -> None:
    """What was copied has the modes of where it came from."""
    for path in directory.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o077)


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """What is made while the context is open, no other user can read."""
    previous = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(previous)


def output_directory(options: ServeSettings, run: Run) -> Path:
    """Where this run's files go: the given directory, which must be new or empty, or the run's own."""
    given = options.run_directory
    directory = run.directory if given is None else given.resolve()
    if given is not None:
        with refused_by_the_system("--run-directory"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise LaunchError(f"--run-directory {directory} is not empty")
    return directory
