"""Embeddings of media by content: what the Triton model `vit` does for one request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import ByteLru, LeaseBook
from .errors import ErrorCode, ServingError
from .metrics import Meter
from .vision import VisionModel


@dataclass(frozen=True)
class NamedFrames:
    """One medium of a request.

    Attributes:
        key: Of its frames.
        count: How many frames `preprocessing` sent; 0: the request has a lease on the embeddings.
    """

    key: bytes
    count: int


class Embedder:
    """The vision model behind a cache. Used by one thread at a time: who comes later finds the work done.

    Args:
        model: Makes embeddings.
        cache_bytes: Of the embeddings that are kept, on the model's device; 0: none.
        meter: Counts the work.

    Attributes:
        leases: What requests on their way here were promised.
    """

    def __init__(self, model: VisionModel, cache_bytes: int, meter: Meter) -> None:
        self._model, self._meter = model, meter
        self._cache: ByteLru[Tensor] = ByteLru("embeddings", cache_bytes, meter)
        self.leases: LeaseBook[Tensor] = LeaseBook(self._cache, _bytes)

    def table(self, frames: Tensor, media: list[NamedFrames], ticket: int, should_stop: Callable[[], bool]) -> Tensor:
        """Rows of the prompt table for a request's media, in their order.

        Args:
            frames: uint8 [T, 3, 448, 448], those of the media that were sent, one after the other.
            media: All of them; none: ``frames`` stand for themselves (a client that calls `vit` alone).
            ticket: Of the lease, 0: none.
            should_stop: See :meth:`VisionModel.embed`.

        Returns:
            [16 T, hidden]; one zero row, which no id refers to, where there are no frames.

        Raises:
            ServingError: DEADLINE_EXCEEDED: the lease has ended.
            Stopped: ``should_stop`` returned True.
        """
        leased = self.leases.take(ticket)
        if not media:
            return self._embed(frames, should_stop) if len(frames) else self._no_rows()
        tables, done = [], dict(leased)
        for medium, sent in zip(media, torch.split(frames, [medium.count for medium in media]), strict=True):
            if medium.key in done:
                self._cache.count(hit=True)
            elif medium.count == 0:
                raise ServingError(ErrorCode.DEADLINE_EXCEEDED, "the request came to the vision model after its deadline")
            else:
                done[medium.key] = self._one(medium.key, sent, should_stop)
            tables.append(done[medium.key])
        return tables[0] if len(tables) == 1 else torch.cat(tables)

    def _one(self, key: bytes, frames: Tensor, should_stop: Callable[[], bool]) -> Tensor:
        kept = self._cache.get(key)  # another request may have brought the same frames a moment before
        if kept is not None:
            return kept
        table = self._embed(frames, should_stop)
        self._cache.put(key, table, _bytes(table))
        return table

    def _embed(self, frames: Tensor, should_stop: Callable[[], bool]) -> Tensor:
        began = time.monotonic()
        table = self._model.embed(frames, should_stop)
        if table.is_cuda:
            torch.cuda.current_stream(table.device).synchronize()  # Triton reads it from another stream
        self._meter.add("internvideo_vision_seconds_total", time.monotonic() - began)
        self._meter.add("internvideo_vision_frames_total", len(frames))
        return table

    def _no_rows(self) -> Tensor:
        return torch.zeros((1, self._model.hidden_size), dtype=self._model.dtype, device=self._model.device)


def _bytes(table: Tensor) -> int:
    return table.numel() * table.element_size()
