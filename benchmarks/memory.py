"""The most memory that a server's processes and the GPUs held while something ran."""

from __future__ import annotations

import re
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_SAMPLE_S = 0.2
_GPUS = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits", f"--loop-ms={_SAMPLE_S * 1e3:.0f}"]


class Peak:
    """Looks while it is entered (context manager), at counters that the kernel and the driver keep anyway.

    Args:
        processes: Gives the ids of those to look at.

    Attributes:
        host_mib: Memory of their own of all processes, and the shared memory of the one that maps most; 0 without any.
        gpu_mib: Of all GPUs of the host, whoever holds it; 0 without a GPU.
    """

    def __init__(self, processes: Callable[[], Iterable[int]]) -> None:
        self.host_mib = 0
        self._gpus: dict[str, int] = defaultdict(int)
        self._processes, self._done = processes, threading.Event()
        self._threads = [threading.Thread(target=self._watch_host)]
        self._smi: subprocess.Popen[str] | None = None

    @property
    def gpu_mib(self) -> int:
        """See above."""
        return sum(self._gpus.values())

    def __enter__(self) -> Self:
        with suppress(OSError):  # no driver
            self._smi = subprocess.Popen(_GPUS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self._threads.append(threading.Thread(target=self._watch_gpus, args=(self._smi.stdout,)))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._done.set()
        if self._smi:
            self._smi.terminate()
            self._smi.wait()
        for thread in self._threads:
            thread.join()
        if self._smi and self._smi.stdout:
            self._smi.stdout.close()

    def _watch_host(self) -> None:
        while True:
            found = [_status(pid) for pid in self._processes()]
            own, shared = (sum(own for own, _ in found), max((shared for _, shared in found), default=0))
            self.host_mib = max(self.host_mib, (own + shared) >> 10)
            if self._done.wait(_SAMPLE_S):
                return

    def _watch_gpus(self, lines: Any) -> None:
        for line in lines:
            index, _, used = line.partition(",")
            if used.strip().isdigit():
                self._gpus[index] = max(self._gpus[index], int(used))


def _status(pid: int) -> tuple[int, int]:
    """KiB of a process: its own and shared; 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    own, shared = (re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE) for name in ("RssAnon", "RssShmem"))
    return int(own[1]) if own else 0, int(shared[1]) if shared else 0
