"""Attention over the paged KV cache, with torch's own kernels only.

transformers' ``paged|sdpa`` gives every query a mask over the keys of all requests. Here each request sees its own keys alone.
On CUDA in half precision that is torch's flash attention over packed sequences; elsewhere scaled dot-product attention,
request by request.

A decoding step reads the cache where it lies: each page is handed to the kernel as a sequence of its own, with the request's
one query, and the pages' results are joined by their log-sum-exp, as flash decoding splits a long sequence. (The kernel takes
``starts`` and ``used`` per sequence, so pages need not follow each other. torch 2.11's takes no block table.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


@dataclass(frozen=True)
class PagedCache:
    """The KV cache of all layers.

    Attributes:
        keys: [tokens, kv_heads, head_dim] of each layer; token ``page * page_size + i`` is the page's i-th.
        values: The same for values.
        page_size: Tokens of a page.
        trash_page: Nobody reads it: padding writes there.
    """

    keys: list[Tensor]
    values: list[Tensor]
    page_size: int
    trash_page: int

    def write(self, layer: int, index: Tensor, key: Tensor, value: Tensor) -> None:
        """Store [tokens, kv_heads, head_dim] at token positions [tokens]."""
        self.keys[layer].index_copy_(0, index, key)
        self.values[layer].index_copy_(0, index, value)


@dataclass(frozen=True)
class PackedStep:
    """Requests of any number of new tokens, one after the other: a step with a prompt in it.

    Attributes:
        write: [new] where the new tokens go in the cache.
        read: [keys] where all keys are, the new ones included; empty: there are no others than the new ones.
        cu_queries: int32 [requests + 1], each request's first new token.
        cu_keys: int32 [requests + 1], each request's first key.
        max_queries: The most new tokens of a request.
        max_keys: The most keys of a request.
    """

    cache: PagedCache
    write: Tensor
    read: Tensor
    cu_queries: Tensor
    cu_keys: Tensor
    max_queries: int
    max_keys: int

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Query [new, heads, head_dim], key and value [new, kv_heads, head_dim] -> [new, heads, head_dim]."""
        self.cache.write(layer, self.write, key, value)
        if self.read.numel():
            key = self.cache.keys[layer].index_select(0, self.read)
            value = self.cache.values[layer].index_select(0, self.read)
        if _has_flash(query):
            lengths = self.max_queries, self.max_keys
            return _flash(query, key, value, self.cu_queries, self.cu_keys, *lengths, scale, causal=True)[0]
        out = torch.empty_like(query)
        for new, keys, mask in self._requests:
            out[new] = _masked(query[new], key[keys], value[keys], mask, scale)
        return out

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
        positions: Integers [requests] of the new tokens; so many keys are in the cache already.
        table: Integers [requests, pages], each request's pages in the cache, in order; those after its last are anything.
    """

    def __init__(self, cache: PagedCache, positions: Tensor, table: Tensor) -> None:
        size, pages = cache.page_size, table.shape[1]
        first = torch.arange(pages, device=table.device) * size  # [pages] position of each page's first token
        table, positions = table.clamp(min=0).long(), positions.long()
        self._cache = cache
        self._table = table
        self._write = table.gather(1, (positions // size)[:, None])[:, 0] * size + positions % size  # [requests]
        self._used = (positions[:, None] + 1 - first).clamp(0, size)  # [requests, pages] keys of each page
        self._starts = pad((table * size).flatten(), (0, 1)).to(torch.int32)  # [requests * pages + 1]
        self._pages = torch.arange(table.numel() + 1, device=table.device, dtype=torch.int32)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Query [requests, heads, head_dim], key and value [requests, kv_heads, head_dim] -> [requests, heads, head_dim]."""
        self._cache.write(layer, self._write, key, value)
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        grouped = query.reshape(*key.shape[:2], -1, query.shape[-1])  # [requests, kv_heads, group, head_dim]
        attend = self._by_page if _has_flash(query) else self._gathered
        return attend(grouped, keys, values, scale)

    def _by_page(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        (requests, pages), group = self._table.shape, query.shape[2]
        packed = query.transpose(1, 2)[:, None].expand(-1, pages, -1, -1, -1).flatten(0, 2)  # a page's group is its queries
        used = self._used.flatten().to(torch.int32)
        cu = self._pages * group
        out, lse = _flash(packed, keys, values, cu, self._starts, group, self._cache.page_size, scale, causal=False, used=used)
        out = out.view(requests, pages, group, *out.shape[1:])  # [..., kv_heads, head_dim]
        return _compiled_join()(out, lse.view(-1, requests, pages, group), self._used)

    def _gathered(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        index, mask = self._all
        key, value = (cache[index].transpose(1, 2) for cache in (keys, values))  # [requests, kv_heads, length, head_dim]
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return out.flatten(1, 2).clone()  # no view, see `attend`

    @cached_property
    def _all(self) -> tuple[Tensor, Tensor]:
        """Where the keys of all pages lie [requests, length], and a mask to add [requests, 1, 1, length]."""
        within = torch.arange(self._cache.page_size, device=self._table.device)
        index = self._table[:, :, None] * self._cache.page_size + within  # [requests, pages, page_size]
        mask = torch.zeros(index.shape, dtype=self._cache.keys[0].dtype, device=index.device)
        mask.masked_fill_(within >= self._used[:, :, None], -torch.inf)
        return index.flatten(1), mask.flatten(1)[:, None, None]


Step = PackedStep | DecodeStep


class CurrentStep:
    """Holds the step under way. Compiled layers pass it on without looking inside, so that no kind of step compiles them anew."""

    step: Step


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    step: CurrentStep,
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
        [new, heads, head_dim], and no weights. (No view of another shape: compiled layers look at what a view is of.)
    """
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return step.step.attend(module.layer_idx, query, key, value, scaling), None


def _has_flash(query: Tensor) -> bool:
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_queries: Tensor,
    cu_keys: Tensor,
    max_queries: int,
    max_keys: int,
    scale: float,
    *,
    causal: bool,
    used: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Packed attention; causal: each last query sees the last key. -> [queries, heads, head_dim], [heads, queries] lse."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, cu_queries, cu_keys, max_queries, max_keys, 0.0, causal, False, scale=scale, seqused_k=used
    )
    return out, lse


def _join(out: Tensor, lse: Tensor, used: Tensor) -> Tensor:
    """Join the pages' outputs.

    Args:
        out: [requests, pages, group, kv_heads, head_dim].
        lse: float32 [kv_heads, requests, pages, group].
        used: [requests, pages]; a page without keys has no say.

    Returns:
        [requests, heads, head_dim], as ``out``'s dtype.
    """
    lse = lse.permute(1, 2, 3, 0).masked_fill(used[:, :, None, None] == 0, -torch.inf)  # [requests, pages, group, kv_heads]
    joined = (out * lse.softmax(dim=1)[..., None]).sum(dim=1)  # [requests, group, kv_heads, head_dim]
    return joined.transpose(1, 2).to(out.dtype).flatten(1, 2)


@cache
def _compiled_join() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.compile(_join, dynamic=True)  # two kernels instead of six


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
