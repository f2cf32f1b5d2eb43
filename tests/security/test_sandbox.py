"""A decoder that a file has taken over: it runs the attacks below in place of decoding, inside the real sandbox."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from internvideo_server import sandbox
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.preprocessing.media import Media, MediaPolicy
from internvideo_server.preprocessing.video import DecodeLimits, DecodeRequest, FrameDecoder, FrameSampling
from tests.video_decoding import V0, decode, ready_pids

HELD = sandbox.tried_elsewhere()
pytestmark = pytest.mark.skipif(not HELD.everything, reason=f"this kernel does not keep a process from {HELD.missing}")

#: Stands for the Python program of the fork server: the same process, with another `decode_video`.
TAKEN_OVER = """#!{python}
import ctypes, json, mmap, os, signal, socket, subprocess, sys, threading
from internvideo_server.errors import invalid
from internvideo_server.preprocessing.video import _fork_server, _worker

libc = ctypes.CDLL(None, use_errno=True)
server, victim = {server}, {victim!r}


def call(name, *args):
    if libc[name](*args) < 0:
        raise OSError(ctypes.get_errno(), name)


def number(call_number, *args):
    if libc.syscall(call_number, *args) < 0:
        raise OSError(ctypes.get_errno(), str(call_number))


def thread():
    done = []
    thread = threading.Thread(target=done.append, args=[1])
    thread.start()
    thread.join()
    assert done


ATTACKS = {{
    "connect": lambda: socket.create_connection(("127.0.0.1", {port})),
    "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "socket pair": socket.socketpair,
    "exec": lambda: os.execv("/bin/sh", ["sh", "-c", "true"]),
    "exec of the medium": lambda: os.execve(open("/proc/self/exe").fileno(), ["x"], {{}}),
    "run": lambda: subprocess.run(["/bin/true"]),
    "fork": os.fork,
    "vfork": lambda: call("vfork"),
    "passwd": lambda: open("/etc/passwd"),
    "own environment": lambda: open("/proc/self/environ"),
    "server's environment": lambda: open(f"/proc/{{server}}/environ"),
    "server's memory": lambda: open(f"/proc/{{server}}/mem", "rb"),
    "folder": lambda: os.listdir("/"),
    "shared memory": lambda: os.listdir("/dev/shm"),
    "write": lambda: open(victim, "w"),
    "create": lambda: open(victim + ".new", "w"),
    "remove": lambda: os.remove(victim),
    "rename": lambda: os.rename(victim, victim + ".old"),
    "truncate": lambda: os.truncate(victim, 0),
    "chmod": lambda: os.chmod(victim, 0o777),
    "chown": lambda: os.chown(victim, os.getuid(), os.getgid()),
    "times": lambda: os.utime(victim),
    "attribute": lambda: os.setxattr(victim, "user.a", b"b"),
    "link": lambda: os.symlink("a", victim + ".link"),
    "kill": lambda: os.kill(server, 0),
    "kill by thread": lambda: number(234, server, server, 0) if os.uname().machine == "x86_64" else os.kill(server, 0),
    "handle on a process": lambda: os.pidfd_open(server),
    "trace": lambda: call("ptrace", 16, server, 0, 0),
    "limits of the server": lambda: __import__("resource").prlimit(server, 0, (1, 1)),
    "priority of the server": lambda: os.setpriority(os.PRIO_PROCESS, server, 19),
    "memory": lambda: os.memfd_create("more"),
    "namespace": lambda: call("unshare", 0x10000000),
    "io_uring": lambda: number(425, 1, None),
    "bpf": lambda: number(321 if os.uname().machine == "x86_64" else 280, 0, None, 0),
    "shorten the frames": lambda: os.truncate(BUFFER, 0),
    "write more than the frames": lambda: os.pwrite(BUFFER, b"x", {most}),
    "overwrite the medium": lambda: os.pwrite(os.open(f"/proc/self/fd/{{MEDIUM}}", os.O_RDWR), b"x", 0),
    "standard error": lambda: os.ttyname(2),
}}
ALLOWED = {{
    "thread": thread,
    "map": lambda: mmap.mmap(-1, 1 << 20),
    "read the medium again": lambda: open(f"/proc/self/fd/{{MEDIUM}}", "rb").read(8),
}}


def attempt(attack):
    try:
        attack()
    except OSError as error:
        return error.errno
    except BaseException as error:
        return repr(error)
    return 0


def taken_over(path, head, sampling, limits, threads, write, plan):
    global MEDIUM
    MEDIUM = int(path.rpartition("/")[2])
    found = {{name: attempt(attack) for name, attack in [*ATTACKS.items(), *ALLOWED.items()]}}
    found["variables"] = sorted(os.environ)
    raise invalid(json.dumps(found), "url")


def decode(request, medium, buffer, limits, tell):
    global BUFFER
    BUFFER = buffer
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return real(request, medium, buffer, limits, tell)


real, _worker._decode, _worker.decode_video = _worker._decode, decode, taken_over
lie = {lie}
if lie is not None:
    _worker._decode = lambda *_: lie
sys.argv = ["fork server", *sys.argv[-2:]]
_fork_server.main()
"""


def taken_over(folder: Path, lie: object = None, **values: Any) -> FrameDecoder:
    program = folder / "python"
    victim = folder / "victim"
    victim.write_text("whole")
    values = {"server": os.getpid(), "victim": str(victim), "port": 1, "most": 128 * 3 * 448 * 448, "lie": repr(lie), **values}
    program.write_text(TAKEN_OVER.format(python=sys.executable, **values))
    program.chmod(0o700)
    return FrameDecoder(1, DecodeLimits(), python=str(program))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What each attack came to: 0, an error number, or an exception; with the medium in a file, as ``file://`` gives it."""
    folder = tmp_path_factory.mktemp("attacks")
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "of the server")
        with taken_over(folder, port=listener.getsockname()[1]) as decoder, V0.open("rb") as medium, FrameBuffer() as buffer:
            with pytest.raises(ServingError) as caught:
                decoder.decode(medium.fileno(), DecodeRequest(sampling=FrameSampling()), buffer)
    assert (folder / "victim").read_text() == "whole"
    assert sorted(os.listdir(folder)) == ["python", "victim"]
    yield json.loads(caught.value.message)


def attacks() -> list[str]:
    table = TAKEN_OVER.partition("ATTACKS = {{")[2].partition("\n}}")[0]
    return [line.split('"')[1] for line in table.splitlines() if line.startswith('    "')]


@pytest.mark.parametrize("attack", attacks())
def test_a_decoder_that_was_taken_over_reaches_nothing(found: dict[str, Any], attack: str) -> None:
    assert found[attack] not in (0, None)
    assert isinstance(found[attack], int), found[attack]


def test_what_decoding_needs_still_works(found: dict[str, Any]) -> None:
    assert {name: found[name] for name in ("thread", "map", "read the medium again")} == {
        "thread": 0,
        "map": 0,
        "read the medium again": 0,
    }


def test_a_decoder_has_nothing_of_the_servers_environment(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HF_TOKEN" not in found["variables"]
    monkeypatch.setenv("INTERNVIDEO_API_KEYS", "secret")
    with FrameDecoder(1) as decoder:
        (worker,) = (psutil.Process(pid) for pid in ready_pids(decoder))
        for process in (worker, worker.parent()):
            assert "INTERNVIDEO_API_KEYS" not in process.environ()
            assert set(process.environ()) <= {
                *("HOME", "LD_LIBRARY_PATH", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "PYTHONPATH", "PYTHONUTF8"),
                *("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "PILLOW_BLOCKS_MAX"),
                *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"),
            }


@pytest.mark.parametrize(
    "lie",
    [
        {"decoded": {"frame_count": 10**6, "indices": [0], "total_frames": 1, "fps": 1.0}},
        {"decoded": {"frame_count": 4, "indices": [0, 0, 0, 0], "total_frames": 1, "fps": 1.0}},  # which it did not write
        {"decoded": {"frame_count": -4, "indices": [], "total_frames": 1, "fps": 1.0}},
        {"decoded": {"frame_count": "4"}},
        {"decoded": None},
        {"error": "NO_SUCH_CODE", "message": "", "param": None},
        {"error": "INTERNAL"},
        {},
        [],
    ],
    ids=str,
)
def test_what_such_a_decoder_says_is_not_believed(tmp_path: Path, lie: object) -> None:
    with taken_over(tmp_path, lie) as decoder:
        with pytest.raises(ServingError) as caught:
            decode(decoder, V0)
        assert caught.value.code is ErrorCode.INTERNAL


def test_uploads_cannot_be_changed_once_they_are_whole() -> None:
    with Media.from_chunks([b"whole"], MediaPolicy(), None) as medium:
        for change in (lambda: os.pwrite(medium.fd, b"x", 0), lambda: os.ftruncate(medium.fd, 1)):
            with pytest.raises(PermissionError):
                change()


def refusals(*changes: Callable[[], object]) -> None:
    for change in changes:
        with pytest.raises(PermissionError):
            change()


def test_frames_cannot_be_cut_while_they_are_read() -> None:
    with FrameBuffer() as buffer:
        os.ftruncate(buffer.fd, 4096)
        with pytest.raises(PermissionError):
            os.ftruncate(buffer.fd, 0)
