"""The process that decoders are forked from: ``python -m internvideo_server.preprocessing.video._fork_server CONTROL_FD LIMITS``.

It has imported what they need and meets no medium. So a decoder starts in milliseconds, has nothing to load, and can close the
sandbox around itself; and each medium has one of its own, in which no other left anything behind. It has one thread, as a
process that forks should have.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys
import traceback
from typing import Any

import av
import av.logging
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from internvideo_server import sandbox

from . import _resize, _worker
from ._request import DecodeLimits

MESSAGE_BYTES = 1 << 16
_PROGRAMS = (".__main__", ".datasets")


def main() -> None:
    """Serve until the control socket ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    limits = DecodeLimits(**json.loads(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal group; the server decides
    av.logging.set_level(None)  # complaints about foreign files are answers to the client, not lines of the server's log
    _load(limits)
    cage = sandbox.Sandbox(devices=limits.reader == "nvdec")
    held = sandbox.tried(cage)
    gc.freeze()  # the decoders' collections do not copy the pages of what they share
    _answer(control, {"ready": os.getpid(), "held": dataclasses.asdict(held)})
    while True:
        message, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 1)
        if not message:
            return
        question = json.loads(message)
        if "start" in question:
            (theirs,) = fds
            pid = _fork(control, theirs, limits, cage)
            os.close(theirs)
            _answer(control, {"pid": pid})
        else:
            _answer(control, {"code": _end(question["end"])})


def _load(limits: DecodeLimits) -> None:
    """Import all that a decoder may need: inside the sandbox nothing can be."""
    Image.init()
    for module in pkgutil.walk_packages(av.__path__, "av."):  # PyAV imports some of itself when it meets a stream of that kind
        if not module.name.endswith(_PROGRAMS):
            importlib.import_module(module.name)
    if limits.reader == "decord":
        from . import _decord  # noqa: F401
    else:
        from . import _pyav  # noqa: F401
    _resize.load_compiled()
    _resize.resize(np.zeros((2, 2, 3), np.uint8))  # what is set up at first use is, once for all
    VideoReformatter().reformat(av.VideoFrame(16, 16, "yuv420p"), format="rgb24")


def _fork(control: socket.socket, theirs: int, limits: DecodeLimits, cage: sandbox.Sandbox) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            control.close()
            _worker.serve(socket.socket(fileno=theirs), limits, cage, server)
            code = 0
        except BaseException:
            traceback.print_exc()  # of its start: then the server's log is still its own
        finally:
            os._exit(code)
    return pid


def _end(pid: int) -> int:
    """End a decoder, if it has not ended, and tell how: an exit code, or a signal's number below 0."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status)


def _answer(control: socket.socket, answer: dict[str, Any]) -> None:
    control.send(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
