"""The GPUs of this host, as nvidia-smi tells them (no CUDA context is made, no torch imported)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

_FIELDS = "index,name,driver_version,memory.total,memory.free,compute_cap"
MIB = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """Memory in bytes."""

    index: int
    name: str
    driver: str
    total: int
    free: int
    compute_capability: str

    @property
    def driver_major(self) -> int:
        return int(self.driver.split(".")[0])


def find_gpus(environ: Mapping[str, str]) -> list[Gpu]:
    """All GPUs; none where there is no driver.

    Args:
        environ: Its PATH is searched for nvidia-smi.
    """
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return []
    query = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if output.returncode:
        return []
    return [gpu for line in output.stdout.splitlines() if (gpu := _parse(line))]


def _parse(line: str) -> Gpu | None:
    fields = [field.strip() for field in line.split(",")]
    try:
        index, name, driver, total, free, capability = fields
        return Gpu(int(index), name, driver, int(total) * MIB, int(free) * MIB, capability)
    except ValueError:  # a GPU in a state without numbers ("[N/A]"), or another line
        return None
