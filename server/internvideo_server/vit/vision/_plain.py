"""The vision path as the checkpoint's modules are written: any device, any dtype."""

from __future__ import annotations

from torch import Tensor, nn

from internvideo_server.deadline import Deadline
from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME

from ._config import VisionConfig
from .merging import merge_tokens
from .tower import RUNNING, VisionTower, normalise, pixel_shuffle


class PlainVision:
    """InternViT, merging and projector, one after the other.

    Attributes:
        chunk_frames: A group alone: products of another shape may round otherwise, so one shape serves all.
    """

    chunk_frames = FRAMES_PER_GROUP

    def __init__(self, config: VisionConfig, tower: VisionTower, projector: nn.Sequential) -> None:
        self._config, self._tower, self._projector = config, tower, projector
        self._token = tower.embeddings.class_embedding  # its device and dtype are the model's

    def embed(self, frames: Tensor, out: Tensor, deadline: Deadline) -> None:
        """Write the rows [16 * n, hidden] of uint8 frames [n, 3, side, side] to ``out``."""
        x = self._tower(self._pixels(frames), deadline)  # [B, 1025, C]
        x = pixel_shuffle(x, self._config.patches_per_side)  # [B, 256, 4 C]
        deadline.check(RUNNING)
        groups = x.reshape(-1, FRAMES_PER_GROUP * self._config.tokens_per_frame, self._config.shuffled_size)
        merged = merge_tokens(groups, self._config.merge_heads, FRAMES_PER_GROUP * TOKENS_PER_FRAME)  # [B / 4, 64, 4 C]
        rows: Tensor = self._projector(merged.to(out.dtype))  # [B / 4, 64, hidden]
        out.copy_(rows.flatten(0, 1))

    def tokens(self, frames: Tensor) -> Tensor:
        """The tower's output, float32 [n, 1 + patches, C]."""
        tokens: Tensor = self._tower(self._pixels(frames))
        return tokens.float()

    def _pixels(self, frames: Tensor) -> Tensor:
        return normalise(frames.to(self._token.device, non_blocking=True)).to(self._token.dtype)
