"""What a process that Triton's Python stub started has to be given."""

from __future__ import annotations

import faulthandler
import gc
import locale
import os
import resource
from pathlib import Path


def prepare_process() -> None:
    """To be called first of all in a model's ``initialize``, and `keep_loaded` last."""
    gc.disable()  # of what is imported and loaded nothing is garbage; looking for it would take a sixth of the time
    _write_own_log()
    _read_text_as_utf8()
    _allow_many_files()


def keep_loaded() -> None:
    """To be called last in ``initialize``: what it loaded stays, so the end's collections take milliseconds, not seconds."""
    gc.freeze()
    gc.enable()


def _write_own_log() -> None:
    """What the process writes goes to ``MODEL.log``, where the launcher says so; a fault that ends it leaves its stack there.

    All stubs share tritonserver's streams, in which nobody finds the last words of a dead one.
    """
    directory = os.environ.get("INTERNVIDEO_LOG_DIRECTORY")
    arguments = Path("/proc/self/cmdline").read_text().split("\0")
    if directory and arguments[0].endswith("triton_python_backend_stub"):
        model = arguments[8].rsplit("_", 2)[0]  # vit_0_0: of the instance
        log = os.open(Path(directory) / f"{model}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        faulthandler.enable()


def _read_text_as_utf8() -> None:
    """Make ``open`` read UTF-8, as everywhere else.

    The stub starts Python isolated from the environment, its locale and ``PYTHONUTF8`` too. ``open`` would then read ASCII alone,
    and torch.compile fails on its first import, for some of its files have other characters.
    """
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:
        locale.setlocale(locale.LC_CTYPE, "")


def _allow_many_files() -> None:
    """Each medium whose frames are kept, or wait for their request, is an open descriptor."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
