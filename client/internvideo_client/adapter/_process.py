"""uvicorn with this project's settings: sockets with deadlines, TLS, several processes on one listening socket."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from typing import Any

import uvicorn

from internvideo_client.errors import ApiError
from internvideo_server.settings import AdapterSettings, variable

from ._app import create_app
from .http import Drain, DrainingServer, SocketLimits, Workers, guarded_protocol, loopback_hosts, set_up_logging

_SETTINGS = "INTERNVIDEO_ADAPTER_SETTINGS"  # of the worker processes, as JSON
_API_KEYS, _METRICS_KEY = variable("api_key"), variable("metrics_key")
_BACKLOG = 2048
_OWN_DESCRIPTORS = 64  # beside connections: Triton, the database, logs, files that come and go

_log = logging.getLogger(__name__)


def run_adapter(settings: AdapterSettings) -> None:
    """Serve until SIGTERM (which drains) or SIGINT."""
    set_up_logging(settings)
    most = _raise_descriptor_limit() - _OWN_DESCRIPTORS
    if settings.max_connections > most:
        _log.warning("at most %d connections: this process may open no more files (ulimit -Hn)", most)
    limits = {"allowed_hosts": _allowed_hosts(settings), "max_connections": min(settings.max_connections, max(1, most))}
    settings = settings.model_copy(update=limits)
    if settings.adapter_workers == 1:
        _serve(settings)
        return
    os.environ.update(_worker_environment(settings))
    listening = uvicorn.Config("", host=settings.host, port=settings.port).bind_socket()
    Workers(serve_worker, listening, settings.adapter_workers).run()


def serve_worker(listening: socket.socket) -> None:
    """One of several processes, by the settings in its environment."""
    settings = settings_of_worker()
    set_up_logging(settings)
    _serve(settings, [listening])


def _serve(settings: AdapterSettings, sockets: list[socket.socket] | None = None) -> None:
    app = create_app(settings)
    drain = Drain(app)
    config = uvicorn.Config(drain, **options_of(settings))
    config.load()
    signal.signal(signal.SIGHUP, lambda *_: _read_again(app, settings, config.ssl))

    def end_all(error: ApiError) -> None:
        app.state.context.client.end_all(error)

    gc.freeze()  # what is loaded stays, and need not be looked through again and again
    DrainingServer(config, drain, settings.drain_timeout, end_all).run(sockets)


def _worker_environment(settings: AdapterSettings) -> dict[str, str]:
    """What the worker processes are told; no secret is written into JSON."""
    environment = {_SETTINGS: settings.model_dump_json(exclude={"api_key", "metrics_key"})}
    keys = [key.get_secret_value() for key in settings.api_key]
    environment[_API_KEYS] = " ".join(keys)
    if settings.metrics_key is not None:
        environment[_METRICS_KEY] = settings.metrics_key.get_secret_value()
    if settings.state_directory is not None:  # where the counters of all processes lie
        counters = settings.state_directory / "metrics"
        counters.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in counters.glob("*.db"):
            old.unlink()
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(counters)
    return environment


def options_of(settings: AdapterSettings) -> dict[str, Any]:
    """Of uvicorn."""
    return {
        "host": settings.host,
        "port": settings.port,
        "http": protocol_of(settings),
        "loop": "uvloop",
        "ws": "none",
        "backlog": _BACKLOG,
        "log_config": None,
        "server_header": False,
        "timeout_keep_alive": settings.keep_alive_timeout,
        "ssl_certfile": settings.ssl_certfile,
        "ssl_keyfile": settings.ssl_keyfile,
        # Streams that are open at the end get their cancel, and their work its stop, within these seconds.
        "timeout_graceful_shutdown": 2,
    }


def protocol_of(settings: AdapterSettings) -> type[asyncio.Protocol]:
    """The connections' class."""
    return guarded_protocol(
        SocketLimits(settings.max_connections, settings.headers_timeout, settings.body_timeout, settings.min_body_rate)
    )


def settings_of_worker() -> AdapterSettings:
    """What :func:`_worker_environment` has left."""
    secrets = {"api_key": os.environ[_API_KEYS].split(), "metrics_key": os.environ.get(_METRICS_KEY)}
    return AdapterSettings.model_validate({**json.loads(os.environ[_SETTINGS]), **secrets})


def _allowed_hosts(settings: AdapterSettings) -> tuple[str, ...]:
    """On the loopback its own names: else a page in a browser here could reach the server by a name of its own. Empty: all."""
    if "*" in settings.allowed_hosts:
        return ()
    return tuple(dict.fromkeys((*settings.allowed_hosts, *loopback_hosts(settings.host))))


def _raise_descriptor_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _read_again(app: Any, settings: AdapterSettings, tls: ssl.SSLContext | None) -> None:
    """API keys and certificates, for what comes from now on; connections stay."""
    try:
        app.state.keys.read()
    except (OSError, ValueError) as error:
        _log.error("the API keys stay as they were: %s", error)
    if tls is not None and settings.ssl_certfile is not None:
        try:
            # First elsewhere: a certificate without its key would take the old ones from the context in use.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls):
                context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
        except OSError as error:
            _log.error("the certificate stays as it was: %s", error)
