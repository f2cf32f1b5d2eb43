"""A terminal: a program runs in a pty, keys go in, and what a person would see comes out."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERNVIDEO = str(Path(sys.executable).parent / "internvideo")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]|\r")
_MOST_S = 60.0


class Terminal:
    """A running program.

    Attributes:
        raw: All that it has written so far.
    """

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process, self._descriptor, self.raw, self._seen = process, descriptor, "", 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def text(self) -> str:
        """What it has written, without colours and movements."""
        return _CONTROL.sub("", self.raw)

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def wait_for(self, text: str) -> None:
        """Until it has written this, after what was waited for before."""
        deadline = time.monotonic() + _MOST_S
        while (found := self.text.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.text[-2000:]}"
            assert self._read(), f"it ended without {text!r}: {self.text[-2000:]}"
        self._seen = found + len(text)

    def end(self) -> int:
        """Wait for its end; the exit code."""
        deadline = time.monotonic() + _MOST_S
        while self._read():
            assert time.monotonic() < deadline, f"it does not end: {self.text[-2000:]}"
        return self.process.wait(_MOST_S)

    def _read(self) -> bool:
        """Take what there is, or wait a little; False at the end."""
        if not select.select([self._descriptor], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # as Linux tells that the program has closed it
            return False
        self.raw += self._decoder.decode(data)
        return bool(data)


@contextmanager
def terminal(*command: str, **environment: str) -> Iterator[Terminal]:
    """Run a program in a terminal of 30 lines and 110 columns; it is ended with the block."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    process = subprocess.Popen(
        command,
        env={**variables, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(ours)


def piped(*command: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same program between pipes."""
    return subprocess.run(
        command, env={**os.environ, **environment}, input=stdin or "", capture_output=True, text=True, timeout=_MOST_S
    )
