"""Run the router: HAProxy under a supervisor, until a signal."""

from __future__ import annotations

from collections.abc import Callable

from internvideo_server.launch._ports import resolve_ports
from internvideo_server.launch._processes import Ended, Run, Supervisor
from internvideo_server.launch._restarts import Restarts
from internvideo_server.launch._terminal import EXIT_GAVE_UP, Signals, stop_signals
from internvideo_server.settings import RouterSettings

from ._program import HAPROXY, drain_router, read_certificate, router_program, start_again, wait_for_start


def route(settings: RouterSettings, say: Callable[[str], None]) -> int:
    """Run the router until SIGINT or SIGTERM (main thread only): requests under way may end, a second signal ends them.

    SIGHUP without a terminal has the certificate read again.

    Args:
        settings: What is wanted.
        say: Takes a line for people.

    Returns:
        The exit code: 0 after a signal, 3 when HAProxy died more often than ``max_restarts``.

    Raises:
        LaunchError: It cannot be started; nothing is left running.
    """
    ports = resolve_ports(
        {"--port": (settings.host, settings.port), "--metrics-port": (settings.metrics_host, settings.metrics_port)}
    )
    settings = settings.model_copy(update={"port": ports["--port"], "metrics_port": ports["--metrics-port"]})
    directory = settings.router_directory.resolve()
    with stop_signals() as signals, router_program(settings) as program, Run() as run:
        supervisor = run.supervise([program])
        try:
            wait_for_start(supervisor, directory, signals.stop.is_set)
            scheme = "https" if settings.ssl_certfile else "http"
            say(f"router: {scheme}://{settings.host}:{settings.port}/v1, metrics on port {settings.metrics_port}")
            reason = _watch(supervisor, settings, signals, say)
            if reason is not None:
                say(f"error: {reason}; the router was stopped")
                return EXIT_GAVE_UP
            say(f"stopping: requests under way have {settings.drain_timeout:g} s; another signal ends them at once")
            drain_router(supervisor, directory, settings.drain_timeout, signals.hurry.is_set)
        finally:
            supervisor.stop()
    return 0


def _watch(supervisor: Supervisor, settings: RouterSettings, signals: Signals, say: Callable[[str], None]) -> str | None:
    """Until the signal (None), or the reason why HAProxy cannot be kept up."""
    restarts = Restarts(settings.max_restarts)
    while not signals.stop.is_set():
        if signals.reload():
            read_certificate(settings, lambda line: say(f"warning: {line}"))
        if not isinstance(ended := supervisor.wait(0.2), Ended):
            continue
        if ended.name != HAPROXY:
            return str(ended)
        if reason := start_again(ended, supervisor, restarts, signals.stop, lambda line: say(f"warning: {line}")):
            return reason
    return None
