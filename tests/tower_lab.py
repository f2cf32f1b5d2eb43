"""A tower that shows what goes through it, and runs when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor

from internvideo_server.deadline import Deadline

V = TypeVar("V")
PATIENCE_S = 30.0


class LabTower:
    """Rows full of their frame's first pixel.

    Args:
        gated: Begin held.

    Attributes:
        chunks: First pixels of the frames of each chunk so far.
        poison: A chunk with this pixel fails.
    """

    chunk_frames = 16
    hidden_size = 8
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, *, gated: bool = False) -> None:
        self.chunks: list[list[int]] = []
        self.poison: int | None = None
        self._come, self._go = threading.Semaphore(0), threading.Semaphore(0)
        self._held = gated

    def hold(self) -> None:
        """Chunks wait from now on."""
        self._held = True

    def wait_for_chunk(self) -> None:
        """Until one is held."""
        assert self._come.acquire(timeout=PATIENCE_S)

    def step(self) -> None:
        """Let one held chunk run."""
        self._go.release()

    def run(self) -> None:
        """Let all run."""
        self._held = False
        self._go.release()

    def embed_chunk(self, frames: Tensor, out: Tensor | None = None, deadline: Deadline | None = None) -> Tensor:
        assert out is not None
        assert len(frames) <= self.chunk_frames
        numbers = frames[:, 0, 0, 0].tolist()
        self.chunks.append(numbers)
        if self._held:
            self._come.release()
            assert self._go.acquire(timeout=PATIENCE_S)
        if deadline is not None:
            deadline.check("running the lab's tower")
        if self.poison in numbers:
            raise ValueError("poisoned")
        out.copy_(frames[:, 0, 0, 0].repeat_interleave(16)[:, None].expand(-1, self.hidden_size))
        return out


def in_thread(work: Callable[[], V]) -> Future[V]:
    """The result of a thread's work."""
    future: Future[V] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
