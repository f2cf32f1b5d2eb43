"""The GPUs of this host, as nvidia-smi tells them (no CUDA context is made, no torch imported)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace

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
        """The driver's branch: 590 of 590.48.01."""
        return int(self.driver.split(".")[0])


def find_gpus(environ: Mapping[str, str]) -> list[Gpu]:
    """All GPUs; none where there is no driver.

    Of numbers in CUDA_VISIBLE_DEVICES, which nvidia-smi itself does not heed, those GPUs in that order, numbered anew as CUDA
    does; a list of UUIDs is not looked into.

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
    found = [gpu for line in output.stdout.splitlines() if (gpu := _parse(line))]
    visible = visible_devices(environ)
    if visible is None or not all(each.isdecimal() for each in visible):
        return found
    by_number = {str(gpu.index): gpu for gpu in found}
    return [replace(by_number[each], index=place) for place, each in enumerate(visible) if each in by_number]


def visible_devices(environ: Mapping[str, str]) -> list[str] | None:
    """CUDA_VISIBLE_DEVICES, one by one; None where it is not set."""
    given = environ.get("CUDA_VISIBLE_DEVICES")
    return None if given is None else [each.strip() for each in given.split(",") if each.strip()]


def _parse(line: str) -> Gpu | None:
    fields = [field.strip() for field in line.split(",")]
    try:
        index, name, driver, total, free, capability = fields
        return Gpu(int(index), name, driver, int(total) * MIB, int(free) * MIB, capability)
    except ValueError:  # a GPU in a state without numbers ("[N/A]"), or another line
        return None
