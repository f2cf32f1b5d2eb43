"""HAProxy as a program of a run: its folder, its start, its deaths and its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from internvideo_server.launch._errors import LaunchError, refused_by_the_system
from internvideo_server.launch._processes import Ended, ProgramSpec, Supervisor
from internvideo_server.launch._restarts import Restarts, TooManyRestartsError
from internvideo_server.settings import RouterSettings

from ._haproxy import find_haproxy
from ._render import certificate
from ._socket import SOCKET, AdminSocket
from ._state import RouterState, certificate_of, put

HAPROXY = "haproxy"
_START_S = 20.0
_LONGEST_SOCKET = 90  # the kernel's 108, less what HAProxy adds while it binds


@contextlib.contextmanager
def router_program(settings: RouterSettings) -> Iterator[ProgramSpec]:
    """HAProxy by these settings, whose ports are chosen; its folder is this process's while the context is open.

    Raises:
        LaunchError: There is no HAProxy, it refuses the settings, or the folder cannot be had.
    """
    haproxy = find_haproxy()
    with _own_directory(settings.router_directory) as directory:
        state = RouterState(settings, directory)
        state.write()
        yield ProgramSpec(HAPROXY, [str(haproxy), "-db", "-f", str(state.configuration)], os.environ, None, grace_s=2.0)


@contextlib.contextmanager
def _own_directory(directory: Path) -> Iterator[Path]:
    """The router's folder, which nobody else may enter, locked.

    Raises:
        LaunchError: It is another's, or another router runs there.
    """
    directory = directory.resolve()
    if len(os.fsencode(directory / SOCKET)) > _LONGEST_SOCKET or re.search(r"[\s'\"#\\$]", str(directory)):
        raise LaunchError(
            f"the router's folder {directory} needs a shorter path, without spaces and quotation marks: see --router-directory, "
            "or with --replicas TMPDIR"
        )
    with refused_by_the_system("--router-directory"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise LaunchError(f"--router-directory {directory}: it must belong to this user alone (chmod 700)")
        lock = os.open(directory / "router.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LaunchError(f"another router runs with --router-directory {directory}") from None
        yield directory
    finally:
        os.close(lock)


def wait_for_start(supervisor: Supervisor, directory: Path, given_up: Callable[[], bool]) -> None:
    """Until its admin socket answers, or the start is given up.

    Raises:
        LaunchError: It ended, or does not answer in time.
    """
    deadline = time.monotonic() + _START_S
    while not given_up():
        if isinstance(ended := supervisor.wait(0.05), Ended):
            raise LaunchError(f"{ended}: its words stand above")
        with contextlib.suppress(LaunchError):
            AdminSocket(directory).ask("show info")
            return
        if time.monotonic() > deadline:
            raise LaunchError(f"haproxy did not start within {_START_S:g} s")


def start_again(
    ended: Ended, supervisor: Supervisor, restarts: Restarts, stop: threading.Event, warn: Callable[[str], None]
) -> str | None:
    """Start HAProxy, which has ended, by the configuration of now; the reason why not, if it died too often."""
    try:
        pause = restarts.delay(HAPROXY, time.monotonic())
    except TooManyRestartsError as error:
        return f"{ended}; {error}"
    warn(f"{ended}; it is started again{f' in {pause:g} s' if pause else ''}")
    if not stop.wait(pause):
        supervisor.start(HAPROXY)
    return None


def read_certificate(settings: RouterSettings, warn: Callable[[str], None]) -> None:
    """Give new connections the certificate that lies there now; one that cannot be used changes nothing."""
    if settings.ssl_certfile is None:
        return
    directory = settings.router_directory.resolve()
    file, admin = certificate(directory), AdminSocket(directory)
    try:
        text = certificate_of(settings)
        lines = "\n".join(line for line in text.splitlines() if line)  # an empty one ends what is sent
        answer = admin.ask(f"set ssl cert {file} <<\n{lines}\n") + admin.ask(f"commit ssl cert {file}")
        if "Success" not in answer:
            raise LaunchError(" ".join(answer.split()))
        put(file, text)
    except (OSError, LaunchError) as error:
        warn(f"the certificate stays as it was: {error}")


def drain_router(supervisor: Supervisor, directory: Path, timeout_s: float, hurry: Callable[[], bool]) -> None:
    """No new connections; until those that are open have ended."""
    with contextlib.suppress(LaunchError, ProcessLookupError):
        found = re.search(r"^Pid: (\d+)$", AdminSocket(directory).ask("show info"), re.MULTILINE)
        if found is None:
            return
        os.kill(int(found[1]), signal.SIGUSR1)
        deadline = time.monotonic() + timeout_s + 1.0
        while not hurry() and time.monotonic() < deadline:
            if isinstance(ended := supervisor.wait(0.1), Ended) and ended.name == HAPROXY:
                return
