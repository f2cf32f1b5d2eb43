"""Wait until what was started answers."""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx2
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ._engine_cache import cache_directory
from ._errors import LaunchError
from ._processes import Ended, Supervisor, tail
from ._progress import Progress

# Of the shell that Triton starts a Python model's process with; Triton itself would wait for it for ever.
_STUB_REFUSED = re.compile(
    r"^(?:ba)?sh: .*(?:No such file|Permission denied|cannot execute).*|.*error while loading shared libraries.*", re.MULTILINE
)


def wait_until_ready(
    supervisor: Supervisor,
    checks: dict[str, Callable[[], str | None]],
    logs: dict[str, Path],
    models: list[str],
    timeout_s: float,
    progress: Progress,
) -> None:
    """Wait until each check passes, in order.

    Args:
        supervisor: Of the programs.
        checks: Program -> what tells why it is not ready yet, None when it is.
        logs: Program -> log file; Triton's tells how many models are loaded.
        models: Names of the models, for the progress.
        timeout_s: For everything together.
        progress: Where to report.

    Raises:
        LaunchError: A program ended, or the time is over; the message has the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    loaded: set[str] = set()
    for name, refusal_of in checks.items():
        while (refusal := refusal_of()) is not None:
            progress.check()
            death = supervisor.wait(0.1)
            if isinstance(death, Ended) or (death is not None and death.code):
                raise LaunchError(f"{death}{_log_for_error(logs.get(getattr(death, 'name', name), logs[name]))}")
            if time.monotonic() > deadline:
                raise LaunchError(f"{name} was not ready after {timeout_s:g} s ({refusal}){_log_for_error(logs[name])}")
            log = logs[name].read_text(errors="replace") if logs[name].exists() else ""
            if refused := _STUB_REFUSED.search(log):
                raise LaunchError(f"the process of a model cannot be started: {refused[0]}")
            if new := {model for model in models if f"successfully loaded '{model}'" in log} - loaded:
                loaded |= new
                progress.report(f"loaded {', '.join(sorted(new))} ({len(loaded)} of {len(models)} models)")
        progress.report(f"{name} is ready")


def http_refusal(url: str) -> Callable[[], str | None]:
    """A check of a health URL: it has to answer 200."""

    def check() -> str | None:
        try:
            answer = httpx2.get(url, trust_env=False, timeout=5.0, verify=False)
        except httpx2.TransportError as error:
            return str(error)
        return None if answer.status_code == httpx2.codes.OK else f"HTTP {answer.status_code} {answer.text[:500]}".strip()

    return check


def deafness(url: str) -> Callable[[], bool]:
    """A check of a URL: whether it gives no answer at all. One that refuses, or is overrun, is not deaf."""

    def check() -> bool:
        try:
            httpx2.get(url, trust_env=False, timeout=5.0, verify=False)
        except httpx2.TimeoutException:
            return True
        except httpx2.TransportError:
            pass
        return False

    return check


def triton_refusal(urls: Mapping[str, str]) -> Callable[[], str | None]:
    """A check of Triton: the server and all its models have to be ready, and each of its ports has to be open.

    Args:
        urls: ``grpc`` (``host:port``), and those of ``http`` and ``metrics`` that are there.
    """

    def check() -> str | None:
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(urls["grpc"], options=options) as channel:
            try:
                ready = service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerReady(
                    service_pb2.ServerReadyRequest(), timeout=5.0
                )
            except grpc.RpcError as error:
                return str(error.details())
        if not ready.ready:
            return "not all models are loaded"
        # These are opened after gRPC's, some 40 ms later.
        return next((refusal for name in ("http", "metrics") if (refusal := _port_refusal(urls.get(name)))), None)

    return check


def _port_refusal(url: str | None) -> str | None:
    if url is None:
        return None
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=5.0).close()
    except OSError as error:
        return f"{url}: {error}"
    return None


def _log_for_error(log: Path) -> str:
    """The end of a log; the whole of it is kept in the cache, since the run's directory goes."""
    if not log.exists():
        return ""
    try:
        kept = cache_directory() / "logs" / f"last-failure-{log.name}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, kept)
    except (OSError, LaunchError):  # nowhere to keep it
        return tail(log)
    return f"{tail(log)}\n(the whole log: {kept})"
