"""``serve --detach``: the server in a session of its own, forked from a command that returns when it answers.

Forked, since a second interpreter would import all of it again: half a second of the start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

from internvideo_server.settings import ServeSettings, secrets_of

from . import _supervisor
from ._engine_cache import cache_directory
from ._errors import LaunchError, refused_by_the_system
from ._registry import living_runs
from ._run_state import private
from ._terminal import READY
from .replicas import serve

DEFAULT_NAME = "internvideo"
_TICK_S = 0.1
_END_S = 60.0


def detach(settings: ServeSettings) -> int:
    """Start a server that goes on when this process and its terminal end; its output goes to a log of its own.

    Returns:
        The exit code: 0 when it serves, its own where it could not start, 130 when the wait was given up by Ctrl-C.

    Raises:
        LaunchError: Another server has its name, or the log cannot be written.
    """
    name = settings.name or DEFAULT_NAME
    if any(run.name == name for run in living_runs()):
        raise LaunchError(f"a server called {name} runs already: choose another --name, or end it: internvideo stop {name}")
    settings = settings.model_copy(update={"name": name})
    log = cache_directory() / "logs" / f"serve-{name}.log"
    with refused_by_the_system(), _interruptible() as given_up:
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        with open(log, "w", opener=private) as output:
            pid = os.fork()
            if pid == 0:
                _serve_detached(settings, output.fileno())
        with open(log) as lines:
            seen = ""
            while not given_up.wait(_TICK_S):
                code = _exit_code(pid)
                seen += (new := lines.read())
                sys.stdout.write(new)
                sys.stdout.flush()
                if code is not None:
                    return code or 1
                if READY in seen:
                    sys.stdout.write(f"Its log: {log}\n")
                    return 0
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_S
        while _exit_code(pid) is None and time.monotonic() < deadline:
            time.sleep(_TICK_S)
        return 130


def _serve_detached(settings: ServeSettings, output: int) -> NoReturn:
    """The forked process: in a session of its own, with the log as its output and nothing of the caller's open."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for secret in secrets_of(settings):  # of options: they would stand in this process's command line for all to read
            _supervisor.blot_out(os.getpid(), secret.encode())
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        code = serve(settings)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def _exit_code(pid: int) -> int | None:
    """Of a child, once; None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Set by SIGINT and SIGTERM: the server that is starting must not stay behind."""
    given_up = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: given_up.set()) for number in numbers}
    try:
        yield given_up
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
