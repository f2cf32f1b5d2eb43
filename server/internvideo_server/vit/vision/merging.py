"""HiCo token merging: the tokens of a group of frames, halved round by round until 64 are left.

Each round adds every token of even place to the most similar token of odd place. This is ToMe's bipartite matching
(arXiv 2210.09461) with r at its maximum: no token stays unmerged, so the original's sort by similarity changes nothing
and only the argmax counts.

Similarity is that of a metric, which is linear in the tokens: it is taken once and merged in their place, a few channels
instead of all, and the tokens themselves are added up once, when it is known where each of them ends.

All of it is float32 whatever the tower's dtype is. In bfloat16 a fifth of the similarities tie and a quarter of the
tokens would go elsewhere than in float32.
Letters in shape comments: G groups, P tokens of a group, C channels, M channels of the metric.
"""

from __future__ import annotations

from collections.abc import Iterable

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
    choices = choose(metric_of(tokens, heads), target)
    return average(tokens, choices, target)


def metric_of(tokens: Tensor, heads: int) -> Tensor:
    """What tokens are compared by.

    Args:
        tokens: [G, P, C], any floating dtype.
        heads: See ``merge_tokens``.

    Returns:
        float32 [G, P, M], M = C / heads.
    """
    return tokens.reshape(*tokens.shape[:2], heads, -1).mean(2, dtype=torch.float32)


@torch.no_grad()
def choose(metric: Tensor, target: int) -> list[Tensor]:
    """Run all rounds on the metric alone.

    Args:
        metric: float32 [G, P, M].
        target: Tokens to be left in each group.

    Returns:
        Of each round ``closest_odd``.
    """
    choices = []
    while metric.shape[1] > target:
        choices.append(closest_odd(metric))
        metric = merge_metric(metric, choices[-1])
    return choices


def closest_odd(metric: Tensor) -> Tensor:
    """Choose for every token of even place the odd one it is merged into: the first of the highest cosine similarity.

    Args:
        metric: float32 [G, P, M], of any length: a sum does as well as a mean.

    Returns:
        int64 [G, P / 2], indices into the odd tokens.
    """
    metric = metric / torch.linalg.vector_norm(metric, dim=2, keepdim=True)
    similarity = metric[:, 0::2] @ metric[:, 1::2].transpose(1, 2)  # [G, even, odd]
    return torch.argmax(similarity, 2)


def merge_metric(metric: Tensor, choice: Tensor) -> Tensor:
    """Add the even tokens' metric to that of the chosen odd ones.

    Args:
        metric: float32 [G, P, M], the sum over what each token stands for.
        choice: int64 [G, P / 2], see ``closest_odd``.

    Returns:
        float32 [G, P / 2, M].
    """
    return metric[:, 1::2] + _ones_where_taken(choice, choice.shape[1]).to(metric.dtype) @ metric[:, 0::2]


def average(tokens: Tensor, choices: Iterable[Tensor], target: int) -> Tensor:
    """Means of the tokens that end in the same place.

    Args:
        tokens: [G, P, C], any floating dtype.
        choices: Of each round, see ``closest_odd``.
        target: Tokens left after the last round.

    Returns:
        float32 [G, target, C].
    """
    taken = _ones_where_taken(_last_places(choices, tokens), target)  # [G, target, P]
    if tokens.is_cuda and tokens.dtype != torch.float32:
        # Ones, zeros and the tokens are exact in the tokens' dtype, and tensor cores add in float32.
        sums = torch.bmm(taken.to(tokens.dtype), tokens, out_dtype=torch.float32)
    else:
        sums = taken.to(torch.float32) @ tokens.to(torch.float32)
    return sums / taken.sum(2, keepdim=True)


def _last_places(choices: Iterable[Tensor], tokens: Tensor) -> Tensor:
    """int64 [G, P]: where each token is after all rounds."""
    places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
    for choice in choices:
        itself = torch.arange(choice.shape[1], device=choice.device).expand_as(choice)
        moves = torch.stack([choice, itself], 2).flatten(1)  # [G, P], of even and odd tokens in turn
        places = moves.gather(1, places)
    return places


def _ones_where_taken(places: Tensor, target: int) -> Tensor:
    """Bool [G, target, P]: which tokens go to which place.

    A product with it adds in a fixed order. scatter_add on CUDA does not, and a last bit of difference can turn a later
    argmax: the same video would get other tokens from run to run.
    """
    return places[:, None, :] == torch.arange(target, device=places.device)[:, None]
