"""A decoder process: ``python -m internvideo_server.video._worker CONTROL_FD LIMITS``.

Decoders of foreign files crash, hang and eat memory; here that costs one process. Jobs come as datagrams with two file
descriptors (medium, buffer) over the control socket, answers go back the same way. When the server goes, the socket ends
and so does this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import av.logging

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.video import _nvdec
from internvideo_server.video._frames import decode_image, decode_video
from internvideo_server.video._request import FRAME_BYTES, DecodeLimits
from internvideo_server.video._resize import Planes, load_compiled
from internvideo_server.video._sampling import Sampling
from internvideo_server.video._sniff import HEAD_BYTES

MESSAGE_BYTES = 1 << 16
_Job = tuple[dict[str, Any], int, int]  # request, medium fd, buffer fd


def main() -> None:
    """Serve jobs until the control socket ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    limits = DecodeLimits(**json.loads(sys.argv[2]))
    _confine(limits)
    if limits.reader == "nvdec":
        _nvdec.device()
    av.logging.set_level(None)  # complaints about foreign files are answers to the client, not lines of the server's log
    jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(control, jobs), daemon=True).start()
    threading.Thread(target=load_compiled, daemon=True).start()
    control.send(json.dumps({"ready": os.getpid()}).encode())
    while True:
        request, medium_fd, buffer_fd = jobs.get()
        try:
            answer = _decode(request, medium_fd, buffer_fd, limits)
        finally:
            os.close(medium_fd)
            os.close(buffer_fd)
        control.send(json.dumps(answer).encode())


def _confine(limits: DecodeLimits) -> None:
    """Bound what a hostile file can do to the host."""
    # CUDA reserves address space for all memory of the host: there, only what can be written to counts.
    kind = resource.RLIMIT_DATA if limits.reader == "nvdec" else resource.RLIMIT_AS
    resource.setrlimit(kind, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal group; the server decides
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")  # if memory ends, this process goes, not the server


def _receive(control: socket.socket, jobs: queue.SimpleQueue[_Job]) -> None:
    """Feed the jobs; in a thread of its own, so that the server's end is seen while a file is being decoded."""
    while True:
        message, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 2)
        if not message:
            os._exit(0)
        jobs.put((json.loads(message), fds[0], fds[1]))


def _decode(request: dict[str, Any], medium_fd: int, buffer_fd: int, limits: DecodeLimits) -> dict[str, Any]:
    def write(place: int, planes: Planes) -> None:
        """Into the file: the pages of a fresh mapping would cost a fault each."""
        os.pwrite(buffer_fd, planes.data, (request["skip_frames"] + place) * FRAME_BYTES)

    path, head = f"/proc/self/fd/{medium_fd}", os.pread(medium_fd, HEAD_BYTES, 0)
    try:
        if request["kind"] == "image":
            decoded = decode_image(path, head, limits, write)
        else:
            decoded = decode_video(path, head, Sampling(**request["sampling"]), limits, request["threads"], write)
    except ServingError as error:
        return {"error": error.code, "message": error.message, "param": error.param}
    except MemoryError:
        message = f"decoding needs more than the {limits.memory_bytes >> 20} MiB that the server gives to one medium"
        return {"error": ErrorCode.INVALID_ARGUMENT, "message": message, "param": "url"}
    return {"decoded": dataclasses.asdict(decoded)}


if __name__ == "__main__":
    main()
