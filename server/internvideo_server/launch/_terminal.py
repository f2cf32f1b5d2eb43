"""What a command that runs until it is told to end has with its terminal: signals, lines for people, exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from internvideo_server import sandbox

from ._errors import LaunchError
from ._progress import InterruptedStartError, Progress

EXIT_GAVE_UP = 3
READY = "Ready."  # what people, and `serve --detach`, wait for


@dataclass(frozen=True)
class Terminal:
    """Where a running command tells, and learns that it should end.

    Attributes:
        say: Takes a line of markup.
        complain: Likewise, for stderr.
        progress: Of the start; its lines have the seconds since then.
        signals: Tell when.
        trial: What the sandbox can do here.
    """

    say: Callable[[str], None]
    complain: Callable[[str], None]
    progress: Progress
    signals: Signals
    trial: Future[sandbox.Held]

    def ready(self, lines: Mapping[str, object], name: str | None) -> None:
        """Tell that all is up: title -> address or path, None is left out; ``name``: as it was given."""
        if missing := self.trial.result().missing:
            self.progress.warn(
                f"what decodes strangers' videos is not kept from {missing} on this machine: internvideo doctor tells more"
            )
        table = "".join(f"\n  {title:15} {value}" for title, value in lines.items() if value is not None)
        stop = f"`internvideo stop {name}`" if name else "`internvideo stop`"
        self.say(f"{table}\n\n{READY} Ctrl-C, or {stop}, stops it.")

    def stopping(self, drain_s: float) -> None:
        """Tell that the first signal was seen."""
        self.say(f"stopping: requests under way have {drain_s:g} s; another signal ends them at once")

    def gave_up(self, reason: str) -> int:
        """Tell why all was stopped; the exit code."""
        self.complain(f"[red]error:[/] {escape(reason)}; everything was stopped")
        return EXIT_GAVE_UP


def in_terminal(work: Callable[[Terminal], int]) -> int:
    """Do the work of a command that ends by a signal (main thread only).

    Returns:
        The exit code: what ``work`` says, 0 where it was told to end while it started, 1 for a LaunchError, which is told.
    """
    say, complain = _printer(Console(highlight=False)), _printer(Console(stderr=True, highlight=False))
    began = time.monotonic()
    with stop_signals() as signals:
        progress = Progress(
            report=lambda line: say(f"[dim]{time.monotonic() - began:6.1f} s[/]  {escape(line)}"),
            warn=lambda line: complain(f"[yellow]warning:[/] {escape(line)}"),
            interrupted=signals.stop.is_set,
        )
        if os.geteuid() == 0:
            progress.warn("this runs as root, and so does what decodes strangers' videos: use a plain user")
        try:
            with ThreadPoolExecutor(1) as beside:  # it takes as long as the checks of a start, and holds up nothing beside them
                return work(Terminal(say, complain, progress, signals, beside.submit(sandbox.tried_elsewhere)))
        except InterruptedStartError:
            return 0
        except LaunchError as error:
            complain(f"[red]error:[/] {escape(str(error))}")
            return 1


class Signals:
    """What was sent: ``stop`` and ``hurry`` are set by the first and by another signal that ends this process."""

    def __init__(self) -> None:
        self.stop, self.hurry, self._reload = threading.Event(), threading.Event(), threading.Event()
        self._has_terminal = _has_terminal()

    def reload(self) -> bool:
        """Whether files of keys and certificates are to be read again, which is told once."""
        asked = self._reload.is_set()
        self._reload.clear()
        return asked

    def seen(self, number: int, frame: object) -> None:
        """The handler."""
        if number == signal.SIGHUP and not self._has_terminal:
            self._reload.set()
        else:
            (self.hurry if self.stop.is_set() else self.stop).set()


@contextlib.contextmanager
def stop_signals() -> Iterator[Signals]:
    """Take SIGINT, SIGTERM and SIGHUP (main thread only). The last one ends where a closed terminal sends it, else it reloads."""
    signals, numbers = Signals(), [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it stays ignored
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, signals.seen) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _has_terminal() -> bool:
    """Whether a terminal controls this process: one that is closed then sends SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _printer(console: Console) -> Callable[[str], None]:
    """Prints a line of markup; a terminal that was closed is not a fault."""

    def line(text: str) -> None:
        with contextlib.suppress(OSError, SystemExit):  # rich ends the process where nobody reads any more
            console.print(text, soft_wrap=True)

    return line
