"""Ragged batches on a paged cache, and what plain attention makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from internvideo_server.engine._attention import DecodeStep, PackedStep, PagedCache

HEAD_DIM = 16


@dataclass
class Case:
    """Requests with ``lengths`` keys, the last ``new`` of them computed now, whose first ``shared`` pages are the first one's."""

    lengths: list[int]
    new: list[int]
    page_size: int
    kv_heads: int
    group: int
    shared: int
    seed: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        pages = [-(-length // self.page_size) for length in self.lengths]
        order = torch.randperm(sum(pages) + 1, generator=generator).tolist()
        self.pages: list[list[int]] = []
        for count in pages:
            self.pages.append([order.pop() for _ in range(count)])
        for i in range(1, len(pages)):  # only whole pages of old keys are shared
            whole = [(self.lengths[j] - self.new[j]) // self.page_size for j in (0, i)]
            count = min(self.shared, *whole)
            self.pages[i][:count] = self.pages[0][:count]

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.device, self.dtype)

        tokens = (sum(pages) + 1) * self.page_size
        self.cache = PagedCache(*([random(tokens, self.kv_heads, HEAD_DIM)] for _ in range(2)), self.page_size)
        total = sum(self.new)
        self.query = random(total, self.kv_heads * self.group, HEAD_DIM)
        self.key, self.value = (random(total, self.kv_heads, HEAD_DIM) for _ in range(2))

    def places(self, request: int) -> list[int]:
        """Where a request's keys lie in the cache."""
        pages = self.pages[request]
        return [pages[i // self.page_size] * self.page_size + i % self.page_size for i in range(self.lengths[request])]

    def packed(self) -> PackedStep:
        read = [place for request in range(len(self.lengths)) for place in self.places(request)]
        write = [place for i, new in enumerate(self.new) for place in self.places(i)[-new:]]
        return PackedStep(
            self.cache,
            write=self.tensor(write),
            read=self.tensor(read if self.lengths != self.new else []),
            cu_queries=self.tensor([0, *accumulate(self.new)]).int(),
            cu_keys=self.tensor([0, *accumulate(self.lengths)]).int(),
        )

    def decoding(self, spare_pages: int = 0) -> DecodeStep:
        width = max(map(len, self.pages)) + spare_pages
        rows = [pages + [-1] * (width - len(pages)) for pages in self.pages]
        return DecodeStep(self.cache, self.tensor(self.lengths) - 1, self.tensor(rows).int())

    def expected(self) -> Tensor:
        """[new, heads, head_dim], request by request with a full mask; call it after the step has written."""
        outputs = []
        for i, query in enumerate(self.query.split(self.new)):
            places = self.tensor(self.places(i))
            key, value = (
                side[0][places].repeat_interleave(self.group, dim=1).transpose(0, 1)
                for side in (self.cache.keys, self.cache.values)
            )
            seen = torch.ones(len(query), len(places), dtype=torch.bool, device=self.device).tril(len(places) - len(query))
            outputs.append(scaled_dot_product_attention(query.transpose(0, 1), key, value, attn_mask=seen).transpose(0, 1))
        return torch.cat(outputs)

    def tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)
