"""A request's ids and table as the ready prompt of vLLM's engine."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)

from internvideo_server.engine.contents import contents_of

from ._model import MODALITY

_PLACEHOLDER = 0  # stands where a row goes; any id of the vocabulary


def table_prompt(
    input_ids: npt.NDArray[np.int32], extra_ids: npt.NDArray[np.uint64] | None, table: torch.Tensor, vocab_size: int
) -> Any:
    """One item for each unbroken run of rows of one content.

    Args:
        input_ids: [N]; ids >= vocab_size are rows of ``table``.
        extra_ids: [N], see :func:`contents_of`.
        table: [rows, hidden]; handed over by reference, so it must stay as it is until the request ends.
        vocab_size: The engine's.

    Raises:
        ValueError: An id points outside the table.
    """
    ids = np.array(input_ids, np.int64)  # a copy: it is written to
    places = np.flatnonzero(ids >= vocab_size)
    if not places.size:
        return tokens_input(ids.tolist())
    rows = ids[places] - vocab_size
    if int(rows.max()) >= len(table):
        raise ValueError(f"input id {int(ids.max())} needs row {int(rows.max())} of a table of {len(table)} rows")
    contents, content = contents_of(extra_ids, places)
    cuts = np.flatnonzero((np.diff(rows) != 1) | (content[1:] != content[:-1])) + 1
    items, names, ranges = [], [], []
    for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(places)], strict=True):
        first, last = int(places[begin]), int(places[end - 1])
        filled = torch.zeros(last - first + 1, dtype=torch.bool)
        filled[torch.from_numpy(places[begin:end] - first)] = True
        data = table[int(rows[begin]) : int(rows[end - 1]) + 1]
        # In a list: vLLM puts a bare tensor into page-locked memory, which fails for one on the GPU.
        items.append(MultiModalKwargsItem({"rows": MultiModalFieldElem(data=[data], field=MultiModalBatchedField())}))
        # A content that is cut in pieces has several items: each piece is named by where it lies in the content.
        start = int(rows[begin] - rows[content == content[begin]].min())
        words = contents[content[begin]]
        key = words.tobytes().hex() if words.all() else uuid.uuid4().hex
        names.append(f"{key}-{start}-{end - begin}")
        ranges.append(PlaceholderRange(offset=first, length=last - first + 1, is_embed=None if filled.all() else filled))
    ids[places] = _PLACEHOLDER
    return mm_input(ids.tolist(), MultiModalKwargsItems({MODALITY: items}), {MODALITY: names}, {MODALITY: ranges})
