"""Another user of the host, beside the real server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from internvideo_server.launch import RunningServer, _supervisor
from tests.asking import answer, client, until, video_part
from tests.launch_lab import Lab
from tests.launch_runs import Serving
from tests.security.test_triton_ports import processes, run_id_of

pytestmark = pytest.mark.server

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


def files_of(server: RunningServer) -> list[Path]:
    """All that lies in the folders of a run."""
    hidden = Path(tempfile.gettempdir()) / f"internvideo-{os.getuid()}-{run_id_of(server)}"
    folders = [folder for folder in (server.repository.parent, hidden) if folder.is_dir()]
    return [*folders, *(path for folder in folders for path in folder.rglob("*") if not path.is_symlink())]


def segments_of(server: RunningServer) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{_supervisor.shm_prefix(run_id_of(server))}*"))


def as_nobody(attempts: dict[str, Callable[[], object]]) -> dict[str, str]:
    """Name -> what came of it for a user without rights: "done", or the error."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            found = {}
            for name, attempt in attempts.items():
                try:
                    attempt()
                    found[name] = "done"
                except OSError as error:
                    found[name] = type(error).__name__
            os.write(writing, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        text = answers.read()
    os.waitpid(pid, 0)
    result: dict[str, str] = json.loads(text)
    return result


def test_no_file_of_a_run_can_be_read_by_others(server: RunningServer, media_dir: Path) -> None:
    with client(server.adapter_url) as http:
        answer(http, video_part(media_dir / "v1.mp4", num_frames=4), max_tokens=1)
    assert len(files_of(server)) > 10
    assert [str(path) for path in files_of(server) if path.exists() and path.stat().st_mode & 0o077] == []
    until(lambda: not any(segment.stat().st_mode & 0o077 for segment in segments_of(server)), "a segment can be read by others")


@as_root
def test_another_user_reads_no_process_and_no_memory_of_a_run(server: RunningServer) -> None:
    until(lambda: not any(segment.stat().st_mode & 0o077 for segment in segments_of(server)), "a segment can be read by others")
    attempts: dict[str, Callable[[], object]] = {}
    pids = [process.pid for process in processes(server)]
    for pid in pids:
        for what in ("environ", "mem", "maps", "auxv"):
            attempts[f"{what} of {pid}"] = Path(f"/proc/{pid}/{what}").read_bytes
        attempts[f"files of {pid}"] = lambda pid=pid: os.listdir(f"/proc/{pid}/fd")
        attempts[f"signal to {pid}"] = lambda pid=pid: os.kill(pid, 0)
    for segment in segments_of(server):
        attempts[segment.name] = segment.read_bytes
    secret = server.repository.with_name("triton_secret")
    attempts["secret"] = secret.read_bytes
    assert len(pids) >= 4
    assert {name: said for name, said in as_nobody(attempts).items() if said != "PermissionError"} == {}
    # It may see command lines, in which no secret stands.
    assert not any(server.secret.value.encode() in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


@as_root
def test_another_user_gets_no_word_from_the_models_own_socket(server: RunningServer) -> None:
    """Its name is to be seen in /proc/net/unix; who asks is looked at."""
    text = (server.repository / "vit" / "config.pbtxt").read_text()
    handoff = text.partition('"handoff_id"')[2].partition('string_value: "')[2].partition('"')[0]
    [name, *_] = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if handoff in line}

    def ask() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(20)
            connection.connect("\0" + name.removeprefix("@"))
            with contextlib.suppress(BrokenPipeError):
                connection.send(b"{}")
            if not connection.recv(1):
                raise ConnectionResetError

    assert as_nobody({"ask": ask})["ask"] in ("ConnectionResetError", "BrokenPipeError")


def test_serve_as_root_warns(lab: Lab) -> None:
    serving = Serving(lab)
    serving.wait_for("Ready")
    serving.end(signal.SIGINT)
    assert serving.warned_of_root == (os.geteuid() == 0)
