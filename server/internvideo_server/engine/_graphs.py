"""Decoding steps as CUDA graphs: a step launches a thousand kernels, and their launching would take longer than they do."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._attention import DecodeStep, PagedCache

# ids [requests], positions [requests], step -> logits [requests, vocab]
Decode = Callable[[Tensor, Tensor, DecodeStep], Tensor]
_FEWEST_PAGES = 8


class DecodeGraphs:
    """Runs decoding steps; on CUDA as graphs, one for each power of two of requests and of pages.

    What does not fill a graph is padded: with requests that read and write the trash page alone, and with pages without keys.

    Args:
        decode: One step of the model. Its work must depend on nothing but its arguments and tensors in fixed places.
        cache: The KV cache.
        max_requests: The most requests of a step.
        max_pages: The most pages of a request.
    """

    def __init__(self, decode: Decode, cache: PagedCache, max_requests: int, max_pages: int) -> None:
        self._decode, self._cache = decode, cache
        self._requests, self._pages = _doubling(1, max_requests), _doubling(_FEWEST_PAGES, max_pages)
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._pool: Any = None

    def warm_up(self) -> None:
        """Make all graphs, so that no request waits for one."""
        device = self._cache.keys[0].device
        for requests, pages in itertools.product(self._requests, self._pages):
            zeros = torch.zeros(requests, dtype=torch.int32, device=device)
            table = torch.full((requests, pages), self._cache.trash_page, dtype=torch.int32)
            self(zeros, zeros, table, longest=pages * self._cache.page_size)

    def __call__(self, ids: Tensor, positions: Tensor, table: Tensor, longest: int) -> Tensor:
        """One step.

        Args:
            ids: [requests].
            positions: [requests].
            table: int32 [requests, pages].
            longest: Keys of the longest request, the new one included.

        Returns:
            Logits [requests, vocab]; the next call may overwrite them.
        """
        pages = -(-longest // self._cache.page_size)
        if not ids.is_cuda:
            return self._decode(ids, positions, DecodeStep(self._cache, positions, table[:, :pages]))
        key = self._requests[bisect_left(self._requests, len(ids))], self._pages[bisect_left(self._pages, pages)]
        graph = self._graphs.get(key)
        if graph is None:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = self._graphs[key] = _Graph(self._decode, self._cache, *key, pool=self._pool)
        return graph.run(ids, positions, table)


class _Graph:
    def __init__(self, decode: Decode, cache: PagedCache, requests: int, pages: int, pool: Any) -> None:
        device, self._trash = cache.keys[0].device, cache.trash_page
        self._ids = torch.zeros(requests, dtype=torch.int32, device=device)
        self._positions = torch.zeros_like(self._ids)
        self._table = torch.full((requests, pages), self._trash, dtype=torch.int32, device=device)
        stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._step(decode, cache)  # what is compiled or tuned at the first call is no part of a graph
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._logits = self._step(decode, cache)

    def _step(self, decode: Decode, cache: PagedCache) -> Tensor:
        return decode(self._ids, self._positions, DecodeStep(cache, self._positions, self._table))

    def run(self, ids: Tensor, positions: Tensor, table: Tensor) -> Tensor:
        requests, pages = len(ids), min(table.shape[1], self._table.shape[1])
        self._ids[:requests].copy_(ids)
        self._positions[:requests].copy_(positions)
        self._positions[requests:].zero_()
        self._table[:requests, :pages].copy_(table[:, :pages])  # from the host
        self._table[requests:].fill_(self._trash)
        self._graph.replay()
        return self._logits[:requests]


def _doubling(least: int, most: int) -> list[int]:
    """``least`` and what comes of doubling it, up to ``most``, which is the last."""
    sizes = [min(least, most)]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return sizes
