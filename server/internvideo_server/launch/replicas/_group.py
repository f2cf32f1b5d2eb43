"""Run the replicas and the router as one: one start, one address, one stop."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from internvideo_server.launch._artifacts import find_checkpoint, project_home
from internvideo_server.launch._commands import reached, serve_command
from internvideo_server.launch._device import resolve_device
from internvideo_server.launch._engine_cache import ensure_exported
from internvideo_server.launch._errors import LaunchError, refused_by_the_system
from internvideo_server.launch._processes import STOP_TIMEOUT_S, Ended, ProgramSpec, Run, Supervisor
from internvideo_server.launch._progress import shown
from internvideo_server.launch._readiness import wait_until_ready
from internvideo_server.launch._registry import RunRecord, living_runs, publish, state_of
from internvideo_server.launch._restarts import Restarts
from internvideo_server.launch._run_state import RunState
from internvideo_server.launch._serve import output_directory, private_files, serve_one
from internvideo_server.launch._terminal import Terminal, in_terminal
from internvideo_server.launch.router import HAPROXY, drain_router, read_certificate, router_program, servers, start_again
from internvideo_server.settings import RouterSettings, ServeSettings, environment_of

from ._plan import Member, count_of, members_of, router_of

_APART_S = 0.5  # of two signals, which would be one if they came at once
_LATER_S = 30.0  # than the replicas, which know better why they are not ready


def serve(options: ServeSettings) -> int:
    """Run one server, or with ``replicas`` several behind a router, until SIGINT or SIGTERM (main thread only).

    A signal lets requests under way end, a second one ends them at once. SIGHUP is such a signal where it comes from a closed
    terminal; without one it has API keys and certificates read again.

    Returns:
        The exit code: 0 after a signal, 1 when it could not start, 3 when something died more often than ``max_restarts``; of
        several replicas, when none is left.
    """
    return in_terminal(lambda terminal: _serve(options, terminal))


def _serve(options: ServeSettings, terminal: Terminal) -> int:
    if (count := count_of(options, os.environ)) > 1:
        return _serve_group(options, count, terminal)
    if options.replicas != "1":
        terminal.progress.report(f"--replicas {options.replicas}: one server, there are no GPUs for more")
    return serve_one(options.model_copy(update={"replicas": "1"}), terminal)


def _serve_group(options: ServeSettings, count: int, terminal: Terminal) -> int:
    progress = terminal.progress
    with refused_by_the_system(), ExitStack() as stack, private_files():
        run = stack.enter_context(Run())
        record = RunRecord(run.id, options.name or run.id, os.getpid(), run.since)
        publish(record, run.directory)
        directory = output_directory(options, run)
        members = members_of(options, record.name, count, os.environ)
        settings = router_of(options, members, run.directory / "router")
        haproxy = replace(stack.enter_context(router_program(settings)), log=directory / f"{HAPROXY}.log")
        url = f"{'https' if options.ssl_certfile else 'http'}://{reached(options.host, settings.port)}"
        state = RunState(directory)
        publish(replace(record, directory=str(directory.resolve()), urls={"openai": f"{url}/v1"}), run.directory)
        if options.engine is None:  # once, and not by each
            ensure_exported(options, find_checkpoint(options, project_home()), resolve_device(options.device), run, progress)
        programs = [*(_program(member, options, directory) for member in members), haproxy]
        progress.report(f"starting {count} replicas and the router")
        supervisor = run.supervise(programs)
        stack.callback(supervisor.stop)
        stack.callback(_end, supervisor, run.id, members, 0.0, lambda: True)
        logs = {program.name: program.log for program in programs if program.log}
        if options.verbose:
            stack.enter_context(shown([*logs.values()]))
        wait_until_ready(supervisor, _checks(members, settings), logs, [], options.ready_timeout + _LATER_S, progress)
        state.set_status("serving")
        lines = {
            "OpenAI API": f"{url}/v1",
            "web page": f"{url}/" if options.page else None,
            "replicas": ", ".join(f"{member.settings.name}{_on_gpus(member)} at {member.url}" for member in members),
            "router metrics": f"http://127.0.0.1:{settings.metrics_port}/metrics",
            "router": f"internvideo router list --router-directory {settings.router_directory}",
            "logs": directory,
        }
        terminal.ready(lines, options.name)
        restarts, living = Restarts(options.max_restarts), {member.name for member in members}
        if reason := _watch(supervisor, living, state, restarts, terminal, lambda: _reload(run.id, settings, progress.warn)):
            return terminal.gave_up(reason)
        state.set_status("draining")
        terminal.stopping(options.drain_timeout)
        drain_router(supervisor, settings.router_directory, options.drain_timeout, terminal.signals.hurry.is_set)
        _end(supervisor, run.id, members, options.drain_timeout, terminal.signals.hurry.is_set)
    return 0


def _program(member: Member, options: ServeSettings, directory: Path) -> ProgramSpec:
    """Its launcher: asked to end it drains; killed, its own supervisor does the rest at once."""
    environ = member.environment(environment_of(member.settings, os.environ))
    log, grace_s = directory / f"{member.name}.log", options.drain_timeout + STOP_TIMEOUT_S
    return ProgramSpec(member.name, serve_command(member.settings), environ, log, grace_s, stop_signal=signal.SIGKILL)


def _checks(members: Iterable[Member], settings: RouterSettings) -> dict[str, Callable[[], str | None]]:
    return {**{member.name: _launch_of(member) for member in members}, HAPROXY: lambda: _not_asked(settings)}


def _not_asked(settings: RouterSettings) -> str | None:
    """Replicas that the router has not seen ready: when they come later, videos move to them."""
    try:
        return ", ".join(each.name for each in servers(settings.router_directory) if each.status != "UP") or None
    except LaunchError as error:
        return str(error)


def _launch_of(member: Member) -> Callable[[], str | None]:
    """A check: its launcher has to have seen that all is up."""

    def check() -> str | None:
        states = [state_of(record)["status"] for record in living_runs() if record.name == member.settings.name]
        return None if states == ["serving"] else "it is starting"

    return check


def _on_gpus(member: Member) -> str:
    return f" on GPU {','.join(member.gpus)}" if member.gpus else ""


def _watch(
    supervisor: Supervisor,
    living: set[str],
    state: RunState,
    restarts: Restarts,
    terminal: Terminal,
    reload: Callable[[], None],
) -> str | None:
    """Until the signal (None), or the reason why it is over. A replica heals itself: one that ends has given up."""
    while not terminal.signals.stop.is_set():
        if terminal.signals.reload():
            reload()
        if not isinstance(ended := supervisor.wait(0.2), Ended):
            continue
        if ended.name == HAPROXY:
            reason = start_again(ended, supervisor, restarts, terminal.signals.stop, terminal.progress.warn)
            if reason is not None:
                return reason
        elif ended.name not in living:
            return str(ended)
        else:
            living.discard(ended.name)
            if not living:
                return f"{ended}, and no replica is left"
            state.died(ended.name, str(ended))
            state.set_status("degraded")
            terminal.progress.warn(f"{ended}, its log tells more; {', '.join(sorted(living))} go on")
    return None


def _reload(run_id: str, settings: RouterSettings, warn: Callable[[str], None]) -> None:
    """Keys are the replicas', the certificate is the router's."""
    for record in living_runs():
        if record.group == run_id:
            with suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGHUP)
    read_certificate(settings, warn)


def _end(supervisor: Supervisor, run_id: str, members: Sequence[Member], drain_s: float, hurry: Callable[[], bool]) -> None:
    """End the replicas, all at the same time: they drain, unless nothing may. Returns when their launchers have ended."""
    began, told, launchers = time.monotonic(), 0, []
    with ExitStack() as stack:
        for record in living_runs():
            if record.group == run_id:
                with suppress(ProcessLookupError):
                    launchers.append(descriptor := os.pidfd_open(record.pid))
                    stack.callback(os.close, descriptor)
        while launchers and time.monotonic() < began + drain_s + STOP_TIMEOUT_S:
            if told == 0 or (told == 1 and hurry() and time.monotonic() > began + _APART_S):
                told += 1
                for member in members:
                    supervisor.end(member.name)
            ended, _, _ = select.select(launchers, [], [], 0.1)
            launchers = [each for each in launchers if each not in ended]
