"""Where the models run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """Where the tower and the embedded engine run: ``index`` None is the CPU."""

    index: int | None

    @property
    def name(self) -> str:
        """PyTorch's name: ``cpu`` or ``cuda:N``."""
        return "cpu" if self.index is None else f"cuda:{self.index}"

    @property
    def default_dtype(self) -> str:
        """What ``--dtype auto`` means here (bfloat16 is emulated, slowly, on most CPUs)."""
        return "float32" if self.index is None else "bfloat16"


def resolve_device(name: str) -> Device:
    """A device of the settings; ``auto`` looks for a GPU without importing torch: a device file of the driver, and a torch that
    is not a CPU build.
    """
    if name == "auto":
        try:
            cpu_build = "+cpu" in metadata.version("torch")
        except metadata.PackageNotFoundError:
            cpu_build = True
        return Device(0 if not cpu_build and any(Path("/dev").glob("nvidia[0-9]*")) else None)
    return Device(None) if name == "cpu" else Device(int(name.partition(":")[2] or 0))
