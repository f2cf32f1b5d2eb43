"""Writes the files of a sharded model, several at once: one after the other they take longer than what is in them."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors.torch import save_file

_AT_ONCE = 4


class ShardWriter:
    """Writes safetensors files in the background. Leaving it waits for them.

    Args:
        most_bytes: What the files under way hold in memory at most; a larger one goes alone.

    Raises:
        OSError, SafetensorError: From a later `write`, or on leaving: a file could not be written.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._under_way: deque[tuple[Future[None], int]] = deque()

    def write(self, file: Path, tensors: dict[str, torch.Tensor]) -> None:
        """Begin a file, once there is room. The tensors must not change any more."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        while self._under_way and size + sum(held for _, held in self._under_way) > self._most_bytes:
            self._under_way.popleft()[0].result()
        self._under_way.append((self._pool.submit(_write, file, tensors), size))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for future, _ in self._under_way:
                future.result()


def _write(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes it private; the server may run as another user
