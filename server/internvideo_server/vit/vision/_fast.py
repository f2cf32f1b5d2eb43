"""The vision path in half precision with folded weights: the plain path's result, up to rounding."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME

from ._config import VisionConfig
from ._fused_weights import fuse_embedding, fuse_layers
from ._layers import Layer, Passes
from .merging import merge_tokens
from .tower import VisionTower

# For sizes that our own kernel does not take. The fastest first; which of them a device has, torch finds out.
_ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class FastVision:
    """InternViT, merging and projector.

    Args:
        config: Sizes.
        tower: InternViT in float16 or bfloat16.
        projector: ``mlp1``, likewise.
        fp8: The products of the layers' MLPs in FP8.
        compiled: On CUDA: what stands between the products is compiled, once for each number of frames.
    """

    def __init__(self, config: VisionConfig, tower: VisionTower, projector: nn.Sequential, *, fp8: bool, compiled: bool) -> None:
        self._config, self._projector = config, projector
        token = tower.embeddings.class_embedding
        self._dtype = token.dtype
        self._patch_weight, self._offset = fuse_embedding(tower)
        self._pass = Passes(compiled=compiled)
        self._layers = []
        for layer in fuse_layers(tower):
            self._layers.append(Layer(layer, config.num_heads, token.dtype, self._pass, fp8=fp8))
            self._shift = layer.shift

    @torch.inference_mode()
    def rows(self, frames: Tensor) -> Tensor:
        """Embed frames.

        Args:
            frames: uint8 [B, 3, image_size, image_size], B a multiple of 4.

        Returns:
            [16 * B, hidden].
        """
        tokens = self._pass.join_patches(*self._stream(frames), self._shift, self._config.patches_per_side)
        groups = tokens.view(-1, FRAMES_PER_GROUP * self._config.tokens_per_frame, self._config.shuffled_size)
        merged = merge_tokens(groups, self._config.merge_heads, FRAMES_PER_GROUP * TOKENS_PER_FRAME)
        rows: Tensor = self._projector(merged.to(self._dtype))
        return rows.flatten(0, 1)

    @torch.inference_mode()
    def tokens(self, frames: Tensor) -> Tensor:
        """The tower's output alone, in the plain path's order: float32 [B, 1 + patches, C]."""
        x, pending = self._stream(frames)
        x = x + self._shift if pending is None else x + self._shift + pending
        return x.view(frames.shape[0], 1 + self._config.patches, -1)

    def _stream(self, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        count, config = frames.shape[0], self._config
        patches = self._pass.cut_patches(frames, config.patch_size, self._patch_weight.shape[1], self._dtype)
        embedded = F.linear(patches, self._patch_weight).view(count, config.patches, -1)
        x, pending = self._pass.place(embedded, self._offset), None
        with sdpa_kernel(_ATTENTION, set_priority=True):
            for layer in self._layers:
                pending = layer(x, pending, count)
        return x, pending
