"""What cannot work is said in a second, and what was damaged is made anew."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from internvideo_server.launch import LaunchError, _checks, _ulimits
from internvideo_server.launch._checks import check_host
from internvideo_server.launch._device import Device
from internvideo_server.launch._plain_path import plain_path
from internvideo_server.launch._progress import Progress
from internvideo_server.launch._readiness import wait_until_ready
from internvideo_server.launch._ulimits import raise_limits
from internvideo_server.launch._verified import damage, seal
from internvideo_server.settings import ServeSettings
from tests.launch_lab import Lab
from tests.launch_runs import laboratory, model_answers, started

CPU, GPU = Device(None), Device(0)
NOTHING = {"PATH": "/nonexistent"}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host without a GPU."""
    (tmp_path / "root" / "dev" / "shm").mkdir(parents=True)
    return tmp_path / "root"


def test_a_gpu_that_is_not_there_is_said_before_anything_is_done(root: Path) -> None:
    with pytest.raises(LaunchError, match="--device cuda: there is no GPU here"):
        check_host(ServeSettings(device="cuda"), GPU, GPU, NOTHING, root)
    with pytest.raises(LaunchError, match="--vit-device cuda: there is no GPU here"):
        check_host(ServeSettings(), CPU, GPU, NOTHING, root)
    check_host(ServeSettings(device="cpu"), CPU, CPU, NOTHING, root)


def test_a_torch_without_cuda_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "dev" / "nvidia0").touch()
    monkeypatch.setattr(_checks.metadata, "version", lambda name: "2.11.0+cpu")
    with pytest.raises(LaunchError, match=r"torch 2\.11\.0\+cpu is a build without CUDA: install torch==2\.11\.0"):
        check_host(ServeSettings(device="cuda"), GPU, GPU, NOTHING, root)


def test_what_needs_a_gpu_is_refused_on_a_cpu(root: Path) -> None:
    with pytest.raises(LaunchError, match="--vit-quantization fp8 needs a GPU"):
        check_host(ServeSettings(device="cpu", vit_quantization="fp8"), CPU, CPU, NOTHING, root)
    with pytest.raises(LaunchError, match="--video-reader nvdec decodes on a GPU"):
        check_host(ServeSettings(device="cpu", video_reader="nvdec"), CPU, CPU, NOTHING, root)


@pytest.mark.parametrize(
    ("full", "message"),
    [
        ("shm", r"shm has 3 MiB free, .*--shm-size"),
        ("cache", r"the cache \(\$INTERNVIDEO_CACHE\) .* less than 64 MiB left"),
        ("run", r"--run-directory .* less than 64 MiB left"),
        ("temporary", r"the temporary directory \(\$TMPDIR\) .* less than 64 MiB left"),
    ],
)
def test_what_is_full_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str, message: str) -> None:
    places = {"shm": root / "dev" / "shm", "cache": tmp_path / "cache", "run": tmp_path / "run", "temporary": tmp_path / "tmp"}
    for place in places.values():
        place.mkdir(exist_ok=True)
    monkeypatch.setenv("INTERNVIDEO_CACHE", str(places["cache"]))
    monkeypatch.setattr(_checks.tempfile, "tempdir", str(places["temporary"]))
    usage: Any = lambda path: Usage(1 << 40, 0, 3 << 20 if Path(path) == places[full] else 1 << 40)  # noqa: E731
    monkeypatch.setattr(_checks.shutil, "disk_usage", usage)
    with pytest.raises(LaunchError, match=message):
        check_host(ServeSettings(device="cpu", run_directory=places["run"] / "new"), CPU, CPU, NOTHING, root)


@pytest.mark.parametrize(
    ("number", "hard", "message"),
    [
        (resource.RLIMIT_NOFILE, 512, r"only 512 open files are allowed, 1024 are the least: raise the limit \(ulimit -Hn"),
        (resource.RLIMIT_AS, 2 << 30, r"only 2097152 KiB of address space are allowed, .*ulimit -v unlimited"),
        (resource.RLIMIT_FSIZE, 1 << 20, r"only 1024 KiB in a file are allowed, .*ulimit -f unlimited"),
        (resource.RLIMIT_NPROC, 50, r"only 50 processes and threads of this user are allowed"),
    ],
)
def test_a_limit_that_is_too_low_is_named(monkeypatch: pytest.MonkeyPatch, number: int, hard: int, message: str) -> None:
    free = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(_ulimits.resource, "getrlimit", lambda which: (10, hard) if which == number else free)
    with pytest.raises(LaunchError, match=message):
        raise_limits()


def test_limits_are_raised_as_far_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited, given = resource.RLIM_INFINITY, []
    limits = dict.fromkeys(range(16), (unlimited, unlimited))
    monkeypatch.setattr(_ulimits.resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(_ulimits.resource, "setrlimit", lambda *values: given.append(values))
    for soft, hard in ((1024, 4096), (1024, unlimited), (unlimited, unlimited), (4096, 4096)):
        limits[resource.RLIMIT_NOFILE] = (soft, hard)
        raise_limits()
    limits[resource.RLIMIT_AS] = (1 << 30, unlimited)
    raise_limits()
    files, space = resource.RLIMIT_NOFILE, resource.RLIMIT_AS
    assert given == [(files, (4096, 4096)), (files, (65536, unlimited)), (space, (unlimited, unlimited))]


# ---- paths


def test_a_plain_path_stays_and_others_get_a_link_that_goes_again(tmp_path: Path) -> None:
    with plain_path(tmp_path) as path:
        assert path == tmp_path
    for name in ("with space", "ü", "a;b", "a$(b)", "it's"):
        directory = tmp_path / name
        directory.mkdir()
        with plain_path(directory, (tmp_path / "absent", tmp_path)) as link:
            assert link.resolve() == directory.resolve()
            assert " " not in str(link)
        assert not link.parent.exists()
    with pytest.raises(LaunchError, match="name another --run-directory or TMPDIR"), plain_path(tmp_path / "ü", ()):
        pass


@pytest.mark.server
@pytest.mark.parametrize("name", ["with space", "视频 ü", "quote'"])
def test_a_run_directory_may_have_any_name(lab: Lab, tmp_path: Path, name: str) -> None:
    with started(lab, run_directory=tmp_path / name) as server:
        assert model_answers(server, "vit")
    assert (tmp_path / name / "tritonserver.log").is_file()


@pytest.mark.server
def test_a_temporary_directory_with_spaces_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "my files"
    odd.mkdir()
    with laboratory(odd, monkeypatch) as lab, started(lab) as server:
        assert model_answers(server, "vit")


@pytest.mark.parametrize(
    "line",
    [
        "bash: line 1: /tmp/a/python/triton_python_backend_stub: Permission denied",
        "bash: line 1: exec: /tmp/my: cannot execute: required file not found",
        "sh: 1: exec: /run/stub: No such file or directory",
        "/run/triton_python_backend_stub: error while loading shared libraries: libcudart.so.12: cannot open shared object file",
    ],
)
def test_a_process_of_a_model_that_cannot_start_is_noticed_at_once(tmp_path: Path, line: str) -> None:
    log = tmp_path / "tritonserver.log"
    log.write_text(f"I1126 starting\n{line}\nI1126 waiting\n")
    supervisor: Any = SimpleNamespace(wait=lambda timeout: None)
    with pytest.raises(LaunchError, match=f"the process of a model cannot be started: {re.escape(line)}"):
        wait_until_ready(supervisor, {"tritonserver": lambda: "not yet"}, {"tritonserver": log}, [], 600, Progress())


# ---- exports


@pytest.fixture
def export(tmp_path: Path) -> Path:
    directory = tmp_path / "export"
    (directory / "llama").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "llama" / "model.safetensors").write_bytes(bytes(1000))
    seal(directory)
    return directory


def test_a_whole_export_is_whole_again_and_again(export: Path) -> None:
    assert damage(export) is None
    os.utime(export / "config.json")  # touched: hashed once more
    assert damage(export) is None
    shutil.copytree(export, export.with_name("copy"))
    assert damage(export.with_name("copy")) is None


def test_a_damaged_export_is_seen(export: Path) -> None:
    weights = export / "llama" / "model.safetensors"
    weights.write_bytes(bytes(999))
    assert damage(export) == "llama/model.safetensors has 999 bytes instead of 1000"
    weights.write_bytes(bytes(999) + b"x")
    assert damage(export) == "llama/model.safetensors has other content"
    weights.unlink()
    assert damage(export) == "llama/model.safetensors is missing"
    (export / ".manifest.json").write_text(json.dumps({})[:1])
    assert damage(export) == ".manifest.json is missing"
