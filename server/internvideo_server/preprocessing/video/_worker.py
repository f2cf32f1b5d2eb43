"""A decoder: a process for one medium, forked from ``_fork_server.py``.

Decoders of foreign files crash, hang, eat memory, and may be taken over by the file; here that costs one process, which has
given up everything but this medium and the memory for its frames before it looks at the first byte. The job comes as a
datagram with two file descriptors (medium, buffer) over the control socket, the answer goes back the same way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import resource
import socket
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.frame_buffer import FRAME_BYTES
from internvideo_server.limits import FRAMES_PER_GROUP
from internvideo_server.sandbox import Sandbox, end_with_parent

from . import _nvdec
from ._frames import decode_image, decode_video
from ._request import DecodedMedia, DecodeLimits
from ._resize import Planes
from ._sampling import FrameSampling
from ._sniff import HEAD_BYTES

MESSAGE_BYTES = 1 << 16
_DETAIL_CHARACTERS = 4000
_DESCRIPTORS = 256
_SPARE_CPU_SECONDS = 10


def serve(control: socket.socket, limits: DecodeLimits, cage: Sandbox, parent: int) -> None:
    """Decode what comes, until the control socket ends or the server ends this process.

    Args:
        control: To the server.
        limits: What is taken on.
        cage: Closed before the first medium is read.
        parent: The fork server, with which this process ends.
    """
    end_with_parent(parent)
    _confine(limits)
    if limits.reader == "nvdec":
        _nvdec.device()  # before the sandbox: it opens what the GPU's driver needs
    _leave_terminal()
    _send(control, {"ready": os.getpid()})
    closed = False
    while True:
        message, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 2)
        if not message:
            return
        request, (medium_fd, buffer_fd) = json.loads(message), fds
        if not closed:
            _bound_output(request, limits)
            cage.close([medium_fd])
            closed = True
        try:
            answer = _decode(request, medium_fd, buffer_fd, limits, partial(_send, control))
        finally:
            os.close(medium_fd)
            os.close(buffer_fd)
        _send(control, answer)


def _leave_terminal() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)


def _confine(limits: DecodeLimits) -> None:
    """Bound what a hostile file can do to the host."""
    # CUDA reserves address space for all memory of the host: there, only what can be written to counts.
    kind = resource.RLIMIT_DATA if limits.reader == "nvdec" else resource.RLIMIT_AS
    _limit(kind, limits.memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _DESCRIPTORS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")  # if memory ends, this process goes, not the server


def _bound_output(request: dict[str, Any], limits: DecodeLimits) -> None:
    """Of the memory for the frames, which is the one thing that can be written to; and of time, should nobody end it."""
    if limits.reader != "nvdec":  # there, one process decodes many media
        _limit(resource.RLIMIT_FSIZE, (request["skip_frames"] + limits.max_frames) * FRAME_BYTES)
        seconds = math.ceil(limits.timeout_s * len(os.sched_getaffinity(0))) + _SPARE_CPU_SECONDS
        _limit(resource.RLIMIT_CPU, seconds)


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value))


def _send(control: socket.socket, answer: dict[str, Any]) -> None:
    control.send(json.dumps(answer).encode())


class _Groups:
    """Tells of each group of 4 frames once it is whole."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._written: Counter[int] = Counter()
        self._lock = threading.Lock()

    def note(self, place: int) -> None:
        group = place // FRAMES_PER_GROUP
        with self._lock:
            self._written[group] += 1
            whole = self._written[group] == FRAMES_PER_GROUP
        if whole:
            self._tell({"group": group})


def _decode(
    request: dict[str, Any],
    medium_fd: int,
    buffer_fd: int,
    limits: DecodeLimits,
    tell: Callable[[dict[str, Any]], None] = lambda message: None,
) -> dict[str, Any]:
    """Decode one medium.

    Args:
        request: The job.
        medium_fd: The medium.
        buffer_fd: Takes the frames.
        limits: What is taken on.
        tell: Given what is to be known before the end: the plan, and each group of frames that is whole.

    Returns:
        The answer.
    """
    groups = _Groups(tell)

    def write(place: int, planes: Planes) -> None:
        """Into the file: the pages of a fresh mapping would cost a fault each."""
        os.pwrite(buffer_fd, planes.data, (request["skip_frames"] + place) * FRAME_BYTES)
        groups.note(place)

    def plan(planned: DecodedMedia) -> None:
        tell({"planned": dataclasses.asdict(planned)})

    path, head = f"/proc/self/fd/{medium_fd}", os.pread(medium_fd, HEAD_BYTES, 0)
    try:
        if request["kind"] == "image":
            decoded = decode_image(path, head, limits, write)
        else:
            decoded = decode_video(path, head, FrameSampling(**request["sampling"]), limits, request["threads"], write, plan)
    except ServingError as error:
        return {"error": error.code, "message": error.message, "param": error.param}
    except MemoryError:
        most = limits.memory_bytes >> 20
        message = f"decoding needs more than the {most} MiB that the server gives to one medium: send a smaller one"
        return {"error": ErrorCode.INVALID_ARGUMENT, "message": message, "param": "url"}
    except Exception as error:  # of libraries that meet what nobody foresaw: an answer, not the end of this process
        what = f"the {request['kind']} cannot be read ({type(error).__name__})"
        message = f"{what}: it is damaged, or of a kind that is not read; convert it"
        detail = "".join(traceback.format_exception(error))[-_DETAIL_CHARACTERS:]
        return {"error": ErrorCode.INVALID_ARGUMENT, "message": message, "param": "url", "detail": detail}
    return {"decoded": dataclasses.asdict(decoded)}
