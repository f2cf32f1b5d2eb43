"""The tower's weights rearranged so that few passes over memory are left between its products.

* Normalising the pixels is folded into the patch embedding: frames go in as the whole numbers that they are.
* Layer scales are folded into the products before them, whose sums go straight into the residual stream.
* The biases of those products never enter the stream. What they add up to is the same for every token and known
  beforehand: it is added where the stream is read, as its "shift".

Letters in shape comments: C hidden size, M size of the MLP, S = 1 + patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .tower import MEAN, STD, VisionTower

# Added to the levels 0..255 before the product: near the means, so no large sums cancel, and exact in bfloat16.
LEVEL_OFFSET = -128


@dataclass(frozen=True)
class FusedNorm:
    """LayerNorm of the stream; float32 [C] each."""

    shift: Tensor  # what the stream lacks
    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class FusedLayer:
    """One layer, float32."""

    norm1: FusedNorm
    qkv: Tensor  # [3 C, C]
    qkv_bias: Tensor  # [3 C]
    proj: Tensor  # [C, C], scaled
    norm2: FusedNorm
    fc1: Tensor  # [M, C]
    fc1_bias: Tensor  # [M]
    fc2: Tensor  # [C, M], scaled
    shift: Tensor  # [C], what the stream lacks after it


@torch.no_grad()
def fuse_layers(tower: VisionTower) -> Iterator[FusedLayer]:
    """The layers in their order, each made when it is asked for."""
    shift = torch.zeros_like(tower.embeddings.class_embedding[0, 0], dtype=torch.float32)
    layer: Any  # torch types the attributes of modules as what they may be at most
    for layer in tower.encoder.layers:
        attention, mlp = layer.attn, layer.mlp
        norm1 = _fuse_norm(layer.norm1, shift)
        shift = shift + attention.proj.bias.float() * layer.ls1.float()
        norm2 = _fuse_norm(layer.norm2, shift)
        shift = shift + mlp.fc2.bias.float() * layer.ls2.float()
        yield FusedLayer(
            norm1,
            attention.qkv.weight.float(),
            attention.qkv.bias.float(),
            attention.proj.weight.float() * layer.ls1.float()[:, None],
            norm2,
            mlp.fc1.weight.float(),
            mlp.fc1.bias.float(),
            mlp.fc2.weight.float() * layer.ls2.float()[:, None],
            shift,
        )


@torch.no_grad()
def fuse_embedding(tower: VisionTower) -> tuple[Tensor, Tensor]:
    """The patch embedding of levels plus ``LEVEL_OFFSET``.

    Returns:
        Weight in the tower's dtype [C, K], K = 3 * patch * patch rounded up to a multiple of 16 with zeros, as matrix
        units want it; and what is added to each token, float32 [S, C]: class token, position, bias.
    """
    embeddings = tower.embeddings
    conv: Any = embeddings.patch_embedding
    mean, std = (torch.tensor(values, device=conv.weight.device).view(3, 1, 1) for values in (MEAN, STD))
    weight = (conv.weight.float() / (255 * std)).to(conv.weight.dtype)
    # Of the rounded weight, so that a frame of the mean colour gives the bias alone, as it does with pixels normalised.
    missing = (weight.double() * (255 * mean.double() + LEVEL_OFFSET)).sum((1, 2, 3)).float()
    offset = embeddings.position_embedding[0].float().clone()
    offset[:1] += embeddings.class_embedding[0].float()
    offset[1:] += conv.bias.float() - missing
    weight = weight.flatten(1)
    return F.pad(weight, (0, -weight.shape[1] % 16)), offset


def _fuse_norm(norm: nn.LayerNorm, shift: Tensor) -> FusedNorm:
    return FusedNorm(shift, norm.weight.float(), norm.bias.float(), norm.eps)
