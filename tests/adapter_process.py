"""An adapter as a process of its own, as ``serve`` starts it."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil

from tests.asking import until
from tests.fake_triton import CONTEXT_LENGTH, make_tokenizer

PATIENCE_S = 60.0


class AdapterProcess:
    """Use it as a context manager.

    Args:
        folder: For the tokenizer of one with nothing behind it.
        options: Of the adapter.
        keys: What its environment says of API keys.
        triton: Where its Triton is; None: nowhere.
        engine: The engine directory of that Triton.
        descriptors: Soft and hard limit of open files.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        keys: str | None = None,
        triton: str | None = None,
        engine: Path | None = None,
        descriptors: tuple[int, int] | None = None,
    ) -> None:
        if engine is None:
            engine = folder
            folder.mkdir(exist_ok=True)
            make_tokenizer().save(str(folder / "tokenizer.json"))
            (folder / "config.json").write_text(json.dumps({"build_config": {"max_seq_len": CONTEXT_LENGTH}}))
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        arguments = [f"--triton={triton or '127.0.0.1:1'}", f"--tokenizer={engine / 'tokenizer.json'}", f"--port={self.port}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "internvideo_client.adapter", *arguments, *options],
            env=dict(os.environ) | ({"INTERNVIDEO_API_KEYS": keys} if keys else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, descriptors) if descriptors else None,
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> AdapterProcess:
        until(self.answers, "the adapter does not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PATIENCE_S) == 0

    def answers(self) -> bool:
        with socket.socket() as probe:
            return self.process.poll() is None and probe.connect_ex(("127.0.0.1", self.port)) == 0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    while data := connection.recv(65536):
        found += data
    return found
