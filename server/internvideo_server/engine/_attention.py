"""Attention over the paged KV cache, with torch's scaled dot-product attention.

transformers' ``paged|sdpa`` gives every query a mask over the keys of all requests. Here each request sees its own keys alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_PIECE = 64  # tokens of a prompt: what a device without memory is given at a time


@dataclass
class PagedCache:
    """The KV cache of all layers.

    Attributes:
        keys: [tokens, kv_heads, head_dim] of each layer; token ``page * page_size + i`` is the page's i-th.
        values: The same for values.
        page_size: Tokens of a page.
        writes: How often something was stored, once in each layer of each step.
    """

    keys: list[Tensor]
    values: list[Tensor]
    page_size: int
    writes: int = 0

    def write(self, layer: int, index: Tensor, key: Tensor, value: Tensor) -> None:
        """Store [tokens, kv_heads, head_dim] at token positions [tokens]."""
        self.keys[layer].index_copy_(0, index, key)
        self.values[layer].index_copy_(0, index, value)
        self.writes += 1


@dataclass(frozen=True)
class PackedStep:
    """Requests of any number of new tokens, one after the other: a step with a prompt in it.

    Attributes:
        write: [new] where the new tokens go in the cache.
        read: [keys] where all keys are, the new ones included; empty: there are no others than the new ones.
        cu_queries: Integers [requests + 1], each request's first new token.
        cu_keys: Integers [requests + 1], each request's first key.
    """

    cache: PagedCache
    write: Tensor
    read: Tensor
    cu_queries: Tensor
    cu_keys: Tensor

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Query [new, heads, head_dim], key and value [new, kv_heads, head_dim] -> [new, heads, head_dim]."""
        self.cache.write(layer, self.write, key, value)
        if self.read.numel():
            key = self.cache.keys[layer].index_select(0, self.read)
            value = self.cache.values[layer].index_select(0, self.read)
        out = torch.empty_like(query)
        for new, keys, mask in self._requests:
            out[new] = _masked(query[new], key[keys], value[keys], mask, scale)
        return out

    def pieces(self) -> Iterator[tuple[slice, PackedStep]]:
        """The same step as many small ones, to be taken in this order: which of the new tokens each computes."""
        read = self.read if self.read.numel() else self.write
        for new, keys, _ in self._requests:
            for begin in range(new.start, new.stop, _PIECE):
                end = min(begin + _PIECE, new.stop)
                mine = read[keys.start : keys.stop - (new.stop - end)]
                bounds = [torch.tensor([0, count]) for count in (end - begin, len(mine))]
                yield slice(begin, end), PackedStep(self.cache, self.write[begin:end], mine, *bounds)

    @cached_property
    def _requests(self) -> list[tuple[slice, slice, Tensor | None]]:
        """Each request's new tokens, its keys, and a mask [new, keys] to add; None: these are one and the same tokens."""
        queries, keys = (list(map(slice, cu[:-1], cu[1:])) for cu in (self.cu_queries.tolist(), self.cu_keys.tolist()))
        return [
            (new, mine, self._mask(new.stop - new.start, mine.stop - mine.start)) for new, mine in zip(queries, keys, strict=True)
        ]

    def _mask(self, new: int, keys: int) -> Tensor | None:
        if new == keys:
            return None
        like = self.cache.keys[0]
        return torch.full((new, keys), -torch.inf, dtype=like.dtype, device=like.device).triu(keys - new + 1)


class DecodeStep:
    """One new token of each request.

    Args:
        cache: The KV cache.
        positions: Integers [requests] of the new tokens; so many keys are in the cache already.
        table: Integers [requests, pages], each request's pages in the cache, in order; those after its last are anything.
    """

    def __init__(self, cache: PagedCache, positions: Tensor, table: Tensor) -> None:
        size, (requests, pages) = cache.page_size, table.shape
        table, positions = table.clamp(min=0).long(), positions.long()
        self._cache, self._positions, self._table = cache, positions, table
        self._write = table.gather(1, (positions // size)[:, None])[:, 0] * size + positions % size  # [requests]
        index = table[:, :, None] * size + torch.arange(size, device=table.device)  # [requests, pages, page_size]
        self._read = index.flatten(1)  # [requests, keys] of all pages
        unused = torch.arange(pages * size, device=table.device) > positions[:, None]
        mask = torch.zeros(requests, 1, 1, pages * size, dtype=cache.keys[0].dtype, device=table.device)
        self._mask = mask.masked_fill_(unused[:, None, None], -torch.inf)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Query [requests, heads, head_dim], key and value [requests, kv_heads, head_dim] -> [requests, heads, head_dim]."""
        self._cache.write(layer, self._write, key, value)
        grouped = query.reshape(*key.shape[:2], -1, query.shape[-1])  # [requests, kv_heads, group, head_dim]
        cache = self._cache.keys[layer], self._cache.values[layer]
        key, value = (side[self._read].transpose(1, 2) for side in cache)  # [requests, kv_heads, keys, head_dim]
        return scaled_dot_product_attention(grouped, key, value, attn_mask=self._mask, scale=scale).flatten(1, 2)

    def pieces(self) -> Iterator[tuple[slice, DecodeStep]]:
        """The same step as one for each request: which of them each computes."""
        for request in range(len(self._table)):
            one = slice(request, request + 1)
            yield one, DecodeStep(self._cache, self._positions[one], self._table[one])


Step = PackedStep | DecodeStep


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    step: Step,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in each layer.

    Args:
        module: The layer's attention.
        query: [1, heads, new, head_dim].
        key: [1, kv_heads, new, head_dim].
        value: [1, kv_heads, new, head_dim].
        attention_mask: None; the step says what is seen.
        scaling: Of the scores.
        step: What this pass computes.

    Returns:
        [new, heads, head_dim], and no weights.
    """
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return step.attend(module.layer_idx, query, key, value, scaling), None


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Query [new, heads, head_dim], key and value [keys, kv_heads, head_dim] of one request -> [new, heads, head_dim]."""
    (new, heads, head_dim), kv_heads = query.shape, key.shape[1]
    key, value = (tensor.transpose(0, 1)[None] for tensor in (key, value))
    if new == 1:  # sees all; the heads of a group have the same keys, so they are the queries
        grouped = query.reshape(1, kv_heads, -1, head_dim)
        return scaled_dot_product_attention(grouped, key, value, scale=scale).reshape(1, heads, head_dim)
    key, value = (tensor.repeat_interleave(heads // kv_heads, dim=1) for tensor in (key, value))
    query = query.transpose(0, 1)[None]
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale)
    return out[0].transpose(0, 1)
