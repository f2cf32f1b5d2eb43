"""A host that is short of something, for real: small disks, small shared memory, low limits, little memory.

What is mounted or limited here needs root, as CI has it; the same code is tested with stand-ins in test_launch_checks.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from internvideo_server.gpus import find_gpus
from internvideo_server.launch import LaunchError, RunningServer, living_runs, start
from internvideo_server.settings import ServeSettings
from tests.launch_lab import Lab
from tests.launch_runs import (
    Serving,
    model_answers,
    of_run,
    options_of,
    started,
    state_of,
    stub_of,
    until,
)

MIB = 1 << 20
CLI = [sys.executable, "-m", "internvideo_client.cli"]
_MEMORY = Path("/sys/fs/cgroup/memory")  # of control groups v1

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
needs_memory_groups = pytest.mark.skipif(
    not os.access(_MEMORY / "cgroup.procs", os.W_OK), reason="needs root and control groups v1, to limit memory"
)


@contextlib.contextmanager
def small_disk(where: Path, mib: int) -> Iterator[Path]:
    """A disk of this size, mounted."""
    where.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", where], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


def serve(lab: Lab, shell: str, **changes: object) -> tuple[int, str]:
    """`internvideo serve` after a line of shell, in mounts of its own: exit code and what it wrote."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options_of(lab, **changes).items()]
    own_mounts = ["unshare", "--mount"] if os.geteuid() == 0 else []
    command = [*own_mounts, "sh", "-c", f'{shell} && exec "$@"', "sh", *CLI, "serve", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return ended.returncode, ended.stdout + ended.stderr


@needs_root
@pytest.mark.parametrize(
    "which", ["--run-directory", r"the temporary directory \(\$TMPDIR\)", r"the cache \(\$INTERNVIDEO_CACHE\)"]
)
def test_a_disk_that_is_full_is_named_and_the_next_start_is_not_in_its_way(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    with small_disk(tmp_path / "disk", 128) as disk:
        filler = disk / "filler"
        filler.write_bytes(bytes(100 * MIB))
        changes = {}
        if "TMPDIR" in which:
            monkeypatch.setattr("tempfile.tempdir", str(disk))
        elif "CACHE" in which:
            monkeypatch.setenv("INTERNVIDEO_CACHE", str(disk / "cache"))
        else:
            changes["run_directory"] = disk / "run"
        with pytest.raises(LaunchError, match=f"^{which} .*less than 64 MiB left: free some, or name another folder$"):
            start(ServeSettings(**options_of(lab, **changes)))
        assert list(disk.iterdir()) == [filler]
        filler.unlink()
        with started(lab, **changes) as server:
            assert model_answers(server, "vit")


@needs_root
@pytest.mark.server
def test_a_disk_that_fills_up_while_it_serves_ends_nothing(lab: Lab, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 128) as disk, started(lab, run_directory=disk / "run") as server:
        with open(disk / "filler", "wb") as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(MIB))
                filler.flush()
        stub = stub_of(lab, "vit")
        stub.kill()
        until(lambda: not stub.is_running() and _answers(server, "vit"))
        (disk / "filler").unlink()
        of_run(lab, "internvideo_client.adapter")[0].kill()
        until(lambda: state_of(server)["deaths"] == {"vit": 1, "adapter": 1})
        until(lambda: state_of(server)["status"] == "serving")


def _answers(server: RunningServer, model: str) -> bool:
    """Likewise, of one that may be away at the moment."""
    with contextlib.suppress(InferenceServerException):
        return model_answers(server, model)
    return False


@needs_root
def test_a_small_shared_memory_is_named(lab: Lab) -> None:
    code, said = serve(lab, "mount -t tmpfs -o size=64m tmpfs /dev/shm")
    assert code == 1
    assert "error: /dev/shm has 64 MiB free, and what passes between the models lies there" in said
    assert "--shm-size" in said


@pytest.mark.skipif(bool(find_gpus(os.environ)), reason="for a host without a GPU")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "--device cuda: there is no GPU here"),
        ({"vit_quantization": "fp8"}, "--vit-quantization fp8 needs a GPU"),
        ({"video_reader": "nvdec"}, "--video-reader nvdec decodes on a GPU"),
    ],
)
def test_what_needs_a_gpu_is_refused_in_one_line_before_any_work(lab: Lab, changes: dict[str, str], message: str) -> None:
    code, said = serve(lab, "true", **changes)
    assert code == 1
    [line] = [line for line in said.splitlines() if "warning:" not in line]
    assert message in line


@pytest.mark.parametrize(
    ("shell", "message"),
    [
        ("ulimit -n 512", "only 512 open files are allowed, 1024 are the least: raise the limit (ulimit -Hn"),
        ("ulimit -v 8000000", "only 8000000 KiB of address space are allowed, "),
        ("ulimit -d 4000000", "only 4000000 KiB of data are allowed, "),
        ("ulimit -f 2000", "KiB in a file are allowed, "),
    ],
)
def test_a_low_limit_of_the_shell_is_named(lab: Lab, shell: str, message: str) -> None:
    code, said = serve(lab, shell)
    assert code == 1
    [line] = [line for line in said.splitlines() if "error:" in line]
    assert message in line


@pytest.mark.server
def test_a_low_limit_that_may_be_raised_is_raised(lab: Lab) -> None:
    with subprocess.Popen(
        ["sh", "-c", 'ulimit -Sn 256 && ulimit -Sv 4000000 && exec "$@"', "sh", *CLI, "serve", "--detach", *_arguments(lab)],
        stdout=subprocess.DEVNULL,
    ) as detaching:
        assert detaching.wait(120) == 0
    lab.note_runs()
    [run] = living_runs()
    assert subprocess.run([*CLI, "stop"], check=False, capture_output=True).returncode == 0
    assert run.urls


def _arguments(lab: Lab) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in options_of(lab).items()]


@contextlib.contextmanager
def little_memory(mib: int) -> Iterator[str]:
    """A control group of this much memory: the line of shell that joins it."""
    group = _MEMORY / f"internvideo-test-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(mib * MIB))
        yield f"echo $$ > {group}/cgroup.procs"
    finally:
        group.rmdir()


@needs_memory_groups
@pytest.mark.server
def test_out_of_memory_at_the_start_is_said(lab: Lab, tmp_path: Path) -> None:
    lab.hungry_model("vit", tmp_path / "sign", at_once=True)
    with little_memory(1200) as join:
        code, said = serve(lab, join)
    assert code == 1
    assert "the process of model vit" in said
    assert "the kernel ran out of memory" in said


@needs_memory_groups
@pytest.mark.server
def test_out_of_memory_while_it_serves_is_said_and_healed(lab: Lab, tmp_path: Path) -> None:
    lab.hungry_model("vit", tmp_path / "sign", at_once=False)
    with little_memory(1200) as join:
        serving = Serving(lab, shell=join)
        serving.wait_for("Ready.")
        (tmp_path / "sign").touch()
        until(lambda: "vit is back" in serving.errors)
        assert "was ended by signal 9 (SIGKILL): the kernel ran out of memory" in serving.errors
        assert serving.end(signal.SIGTERM)[0] == 0
