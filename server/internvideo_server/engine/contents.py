"""Which virtual tokens show the same content: told by ``prompt_table_extra_ids``, four of them at a time.

TensorRT-LLM compares (token id, extra id) of every token in a block of its KV cache. ``preprocessing`` gives a medium's
tokens the four 64-bit words of its key in turn, so that two media are the same there only if all 256 bits agree. An engine
here must hold to that too: one word alone names nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_WORDS = 4


def contents_of(
    extra_ids: Sequence[int] | npt.NDArray[np.uint64] | None, virtual: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Sort virtual tokens by content.

    Each four that follow each other are one: they have the same content as four others if all their extra ids are the same, in
    the same order. One constant extra id for a medium, as clients of their own may send, is the case of four equal words; then
    four tokens on the border of two media are a content of their own.

    Args:
        extra_ids: [N], one for each token of the prompt; None where nothing may be shared.
        virtual: [V], the places of the virtual tokens in the prompt.

    Returns:
        The different contents as words [C, 4] (a 0 among them: known by no name, never to be shared), and the content
        of each virtual token as an index into them [V].
    """
    words = np.zeros(len(virtual), np.uint64) if extra_ids is None else np.asarray(extra_ids, np.uint64)[virtual]
    fours = np.pad(words, (0, -len(words) % _WORDS), mode="edge" if len(words) else "constant").reshape(-1, _WORDS)
    contents, index = np.unique(fours, axis=0, return_inverse=True)
    return contents, np.repeat(index.reshape(-1), _WORDS)[: len(words)]
