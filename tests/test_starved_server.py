"""The whole chain in a small shared memory of its own that is filled while it serves."""

from __future__ import annotations

import base64
import contextlib
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from internvideo_server.launch import RunRecord, end, living_runs, statuses
from tests.asking import body, client, until
from tests.test_starved import needs_root

MIB = 1 << 20
MOUNT = 'mount -t tmpfs -o size=256m tmpfs /dev/shm && exec "$@"'


@pytest.fixture
def serving(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunRecord]:
    """A detached server in mounts of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    serve = [sys.executable, "-m", "internvideo_client.cli", "serve", "--detach", "--device=cpu", f"--checkpoint={checkpoint}"]
    ports = ["--port=0", "--triton-grpc-port=0", "--triton-metrics-port=0"]
    started = subprocess.run(["unshare", "--mount", "sh", "-c", MOUNT, "sh", *serve, *ports], timeout=300, check=False)
    assert started.returncode == 0
    [run] = living_runs()
    yield run
    assert end(run, now=True, timeout_s=60)


def uploaded(video: Path, mib: int) -> dict[str, Any]:
    """A video in the request itself, with a box of so many MiB that players skip."""
    padded = video.read_bytes() + struct.pack(">I4s", mib * MIB, b"free") + os.urandom(mib * MIB - 8)
    return {
        "type": "video_url",
        "video_url": {"url": "data:video/mp4;base64," + base64.b64encode(padded).decode(), "num_frames": 8},
    }


@needs_root
@pytest.mark.server
def test_a_full_shared_memory_costs_a_503_at_most(serving: RunRecord, media_dir: Path) -> None:
    filler = Path(f"/proc/{serving.pid}/root/dev/shm/filler")
    with client(serving.urls["adapter"]) as http:

        def asked(mib: int) -> Any:
            return http.post("/v1/chat/completions", json=body(uploaded(media_dir / "v7.mp4", mib), max_tokens=4))

        assert asked(1).status_code == 200
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB))
        for mib in (1, 32):  # what is sent along needs none of it; where Triton's own tensors do, it says so
            given = asked(mib)
            assert (given.status_code, given.headers.get("Retry-After")) in ((200, None), (503, "1")), given.text
        filler.unlink()
        until(lambda: http.get("/health/ready").status_code == 200, "it did not come back")
        assert asked(32).status_code == 200
        assert statuses()[0].deaths == {}
