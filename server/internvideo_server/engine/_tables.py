"""Prompt-table embeddings for transformers' continuous batching, which takes token ids only.

TensorRT-LLM reads token ids >= vocab_size as rows of the request's own ``prompt_embedding_table``. The manager shares the
KV cache of equal id prefixes, so here two different videos must never have the same ids, and the same video must always
have the same: each (content by its extra ids, number of rows) gets a range of ids that no other content gets. The model's
embedding layer is replaced by one that finds those ids in a pool of rows.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from cachetools import LRUCache
from torch import nn

from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME

from .contents import contents_of

# Ids that are remembered for contents seen before. A forgotten one costs a prefill, never a wrong answer.
_REMEMBERED_RANGES = 4096
# A request may have as many media as its table has rows for, of which the smallest, an image, takes 4 frames; each takes one
# entry of the look-up table that every pass compares its ids with. Small tables have this many entries:
_FEWEST_SPANS = 16
_ROWS_OF_AN_IMAGE = FRAMES_PER_GROUP * TOKENS_PER_FRAME
_LAST_ID = 2**31 - 1  # the manager stores ids as int32


@dataclass(frozen=True)
class _Span:
    """Ids ``[start, start + rows)`` of one content inside a request."""

    start: int
    rows: int


class IdRanges:
    """Gives every content its own range of ids above the vocabulary.

    When int32 is used up the ids start again at the bottom: by then over two thousand million ids have gone through
    the KV cache, which holds a few ten thousand, so no cached block of the earlier owner can be left.
    """

    def __init__(self, vocab_size: int) -> None:
        self._first = self._next = vocab_size
        self._known: LRUCache[tuple[tuple[int, ...], int], int] = LRUCache(_REMEMBERED_RANGES)
        self._lock = threading.Lock()

    def start_of(self, content: tuple[int, ...], rows: int) -> int:
        """The first id for this content. One with a 0 among its words has no name: it gets a range that is never given again."""
        with self._lock:
            if all(content) and (known := self._known.get((content, rows))) is not None:
                return known
            if self._next + rows > _LAST_ID:
                self._next = self._first
                self._known.clear()
            start, self._next = self._next, self._next + rows
            if all(content):
                self._known[(content, rows)] = start
            return start


class PromptTables(nn.Module):
    """Token embedding that also serves the rows of the prompt tables of the requests at work.

    A request takes one slot of ``max_rows`` rows for as long as it is at work. Changes are queued, and done between two
    forward passes by the thread that runs them, so that no running pass sees a half-written slot.

    Args:
        embedding: The model's own token embedding [vocab, hidden].
        slots: Requests at work at once.
        max_rows: Rows of one request's table.

    Attributes:
        max_spans: Different contents that one request may have.
    """

    def __init__(self, embedding: nn.Embedding, slots: int, max_rows: int) -> None:
        super().__init__()
        self.embedding = embedding
        weight = embedding.weight
        self.vocab_size, self.hidden_size, self.max_rows = weight.shape[0], weight.shape[1], max_rows
        self.dtype, self.device = weight.dtype, weight.device
        self._ranges = IdRanges(self.vocab_size)
        self._free = deque(range(slots))
        self._changes: deque[tuple[int, list[_Span], torch.Tensor | None]] = deque()
        self.max_spans = max(_FEWEST_SPANS, max_rows // _ROWS_OF_AN_IMAGE)
        none = torch.full((slots, self.max_spans), -1, dtype=torch.int64, device=weight.device)
        self._starts = none.clone()  # first id of each span
        self._ends = none.clone()  # one after its last id
        self._rows = none.clone()  # pool row of its first id
        self._pool = torch.zeros((slots * max_rows, self.hidden_size), dtype=self.dtype, device=weight.device)

    @property
    def weight(self) -> torch.Tensor:
        """The token embedding's own weight, [vocab, hidden]."""
        return self.embedding.weight

    def admit(
        self,
        input_ids: npt.NDArray[np.int32],
        extra_ids: Sequence[int] | npt.NDArray[np.uint64] | None,
        table: torch.Tensor,
    ) -> tuple[int, list[int]]:
        """Take a slot for a request and translate its ids.

        Args:
            input_ids: [N]; ids >= vocab_size are rows of ``table``.
            extra_ids: [N], see :func:`contents_of`.
            table: [rows, hidden], the engine's dtype; copied before this returns.

        Returns:
            The slot, and the ids [N] that the manager takes.

        Raises:
            ValueError: An id points outside the table, there are more than ``max_spans`` contents, or they share rows so that
                a slot does not hold them all.
        """
        ids = input_ids.astype(np.int64)
        virtual = np.flatnonzero(ids >= self.vocab_size)
        table_rows = ids[virtual] - self.vocab_size  # row of the request's table, per virtual token
        if virtual.size and int(table_rows.max()) >= table.shape[0]:
            raise ValueError(f"input id {int(ids.max())} needs row {int(table_rows.max())} of a table of {table.shape[0]} rows")
        contents, content_of = contents_of(extra_ids, virtual)
        if len(contents) > self.max_spans:
            raise ValueError(f"{len(contents)} different contents in one prompt table, at most {self.max_spans} are possible")
        spans: list[_Span] = []
        order: list[npt.NDArray[np.int64]] = []  # table rows in the order of the spans
        for index, content in enumerate(contents.tolist()):
            mine = content_of == index
            rows = np.unique(table_rows[mine])  # a row may be used twice; sorted
            start = self._ranges.start_of(tuple(content), len(rows))
            ids[virtual[mine]] = start + np.searchsorted(rows, table_rows[mine])
            spans.append(_Span(start, len(rows)))
            order.append(rows)
        if (total := sum(span.rows for span in spans)) > self.max_rows:
            raise ValueError(f"the contents of the prompt table have {total} rows together, at most {self.max_rows} are possible")
        if spans:
            rows = table[torch.from_numpy(np.concatenate(order)).to(table.device)]
            if rows.is_cuda:  # the forward passes have a stream of their own
                torch.cuda.current_stream(rows.device).synchronize()
        slot = self._free.popleft()  # when nothing can fail any more
        if spans:
            self._changes.append((slot, spans, rows))
        return slot, ids.tolist()

    def release(self, slot: int) -> None:
        """Give the slot back. Only when no forward pass can hold the request any more: its rows go."""
        self._changes.append((slot, [], None))
        self._free.append(slot)

    def apply_changes(self) -> None:
        """Do what was queued. Called before each forward pass, by the thread that runs it."""
        while self._changes:
            slot, spans, rows = self._changes.popleft()
            self._starts[slot], self._ends[slot] = -1, -1
            row = slot * self.max_rows
            if rows is not None:
                self._pool[row : row + len(rows)] = rows.to(self.device)
                if rows.is_cuda:
                    rows.record_stream(torch.cuda.current_stream(rows.device))
            for i, span in enumerate(spans):
                self._rows[slot, i] = row
                self._starts[slot, i], self._ends[slot, i] = span.start, span.start + span.rows
                row += span.rows

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed ids [..., Q] -> [..., Q, hidden]."""
        ids = input_ids.reshape(-1, 1).to(torch.int64)  # [Q, 1]
        hit = (ids >= self._starts.view(1, -1)) & (ids < self._ends.view(1, -1))  # [Q, slots * max_spans]
        span = hit.to(torch.uint8).argmax(dim=1)  # [Q], any entry that holds the id: equal content
        row = self._rows.view(-1)[span] + ids[:, 0] - self._starts.view(-1)[span]
        is_virtual = hit.any(dim=1)  # [Q]
        own = self.embedding(torch.where(is_virtual, 0, ids[:, 0]).clamp(max=self.vocab_size - 1))  # [Q, hidden]
        table = self._pool[torch.where(is_virtual, row, 0)]  # [Q, hidden]
        shape = (*input_ids.shape, self.hidden_size)
        return torch.where(is_virtual.view(*input_ids.shape, 1), table.view(shape), own.view(shape))
