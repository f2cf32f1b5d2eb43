"""Memory for the prompt tables that are being made and handed over: as many buffers as responses may be in flight."""

from __future__ import annotations

import threading
import time

import torch
from torch import Tensor

from internvideo_server.deadline import POLL_SECONDS, Deadline
from internvideo_server.errors import ErrorCode, ServingError, invalid
from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME
from internvideo_server.metrics import Meter


class Region:
    """One buffer, taken from its pool until ``release``.

    Attributes:
        name: Prefix and number.
    """

    def __init__(self, pool: RegionPool, name: str, memory: Tensor) -> None:
        self._pool, self.name, self._memory = pool, name, memory

    def rows(self, count: int, width: int, dtype: torch.dtype) -> Tensor:
        """Its beginning as [count, width]. What stood there before stays."""
        return self._memory[: count * width * dtype.itemsize].view(dtype).view(count, width)

    def release(self) -> None:
        """Give it back, once nobody reads or writes it any more. (Triton has copied a response when its sending returns.)"""
        self._pool.give_back(self)


class RegionPool:
    """Regions on one device, made at once, so that no load can make the memory grow. Thread-safe.

    Args:
        count: Regions.
        size: Bytes of each.
        prefix: Of their names.
        device: Where they are.
        meter: Shows how many are in use.
    """

    def __init__(self, count: int, size: int, prefix: str, device: torch.device, meter: Meter) -> None:
        self.count, self.size, self.prefix = count, size, prefix
        self._meter = meter
        self._changed = threading.Condition()
        memory = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(count)]
        self._free = [Region(self, f"{prefix}{number}", each) for number, each in enumerate(memory)]

    def take(self, rows: int, row_bytes: int, deadline: Deadline) -> Region:
        """A region for so many rows; waits for one while the deadline lasts.

        Raises:
            ServingError: INVALID_ARGUMENT: no region is that large. UNAVAILABLE: none became free in time. CANCELLED.
        """
        if rows * row_bytes > self.size:
            most = self.size // (FRAMES_PER_GROUP * TOKENS_PER_FRAME * row_bytes) * FRAMES_PER_GROUP
            raise invalid(
                f"{rows // TOKENS_PER_FRAME} frames make {rows * row_bytes} bytes of embeddings, the server's regions hold "
                f"{self.size}: ask for at most {most} frames",
                "frames",
            )
        with self._changed:
            while not self._free:
                if deadline.cancelled():
                    raise ServingError(ErrorCode.CANCELLED, "the request was cancelled while waiting for a region")
                left = deadline.at - time.monotonic()
                if left <= 0:
                    text = f"all {self.count} regions ({self.prefix}*) were in use until the request's deadline; try again later"
                    raise ServingError(ErrorCode.UNAVAILABLE, text)
                self._changed.wait(min(left, POLL_SECONDS))
            region = self._free.pop()
            self._show()
        return region

    def give_back(self, region: Region) -> None:
        """See :meth:`Region.release`."""
        with self._changed:
            self._free.append(region)
            self._show()
            self._changed.notify()

    def _show(self) -> None:
        self._meter.set("internvideo_regions_in_use", self.count - len(self._free))
