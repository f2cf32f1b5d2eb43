"""HiCo token merging: the tokens of a group of frames, halved round by round until 64 are left.

Each round adds every token of even place to the most similar token of odd place. This is ToMe's bipartite matching
(arXiv 2210.09461) with r at its maximum: no token stays unmerged, so the original's sort by similarity changes nothing
and only the argmax counts.

All of it is float32 whatever the tower's dtype is. In bfloat16 a fifth of the similarities tie and a quarter of the
tokens would go elsewhere than in float32.
Letters in shape comments: G groups, P tokens of a group, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge_tokens(tokens: Tensor, heads: int, target: int) -> Tensor:
    """Merge the tokens of each group down to ``target``.

    Args:
        tokens: [G, P, C], P = target * 2**rounds; any floating dtype.
        heads: Number of equal chunks of C whose mean is the metric of similarity.
        target: Tokens to be left in each group.

    Returns:
        float32 [G, target, C]: means of the merged tokens, in the order of the odd tokens that took the others in.
    """
    x = tokens.to(torch.float32)
    sizes = x.new_ones(*x.shape[:2], 1)  # [G, P, 1] how many tokens each one stands for
    while x.shape[1] > target:
        x, sizes = merge_into(x, sizes, closest_odd(x, heads))
    return x


def closest_odd(x: Tensor, heads: int) -> Tensor:
    """Choose for every token of even place the odd one it is merged into: the first of the highest cosine similarity.

    Args:
        x: float32 [G, P, C].
        heads: See ``merge_tokens``.

    Returns:
        int64 [G, P / 2], indices into the odd tokens.
    """
    metric = x.reshape(*x.shape[:2], heads, -1).mean(2)  # [G, P, C / heads]
    metric = metric / torch.linalg.vector_norm(metric, dim=2, keepdim=True)
    similarity = metric[:, 0::2] @ metric[:, 1::2].transpose(1, 2)  # [G, even, odd]
    return torch.argmax(similarity, 2)


def merge_into(x: Tensor, sizes: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
    """Add the even tokens to the chosen odd ones, weighted by size.

    Args:
        x: float32 [G, P, C].
        sizes: float32 [G, P, 1].
        choice: int64 [G, P / 2], see ``closest_odd``.

    Returns:
        Means float32 [G, P / 2, C] and their sizes float32 [G, P / 2, 1].
    """
    # Sums as a product with ones and zeros: scatter_add on CUDA adds in no fixed order, and a last bit of difference
    # can turn a later argmax, so the same video would get other tokens from run to run.
    odd = torch.arange(choice.shape[1], device=choice.device)
    taken = (choice[:, None, :] == odd[:, None]).to(x.dtype)  # [G, odd, even], 1 where the odd one takes the even one in
    weighted = x * sizes
    sums = weighted[:, 1::2] + taken @ weighted[:, 0::2]
    sizes = sizes[:, 1::2] + taken @ sizes[:, 0::2]
    return sums / sizes, sizes
