"""The vision path as one object: frames to embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from internvideo_server.checkpoint import Checkpoint
from internvideo_server.limits import TOKENS_PER_FRAME
from internvideo_server.vision._config import FRAMES_PER_GROUP, VisionConfig
from internvideo_server.vision._loading import load_vision
from internvideo_server.vision.merging import merge_tokens
from internvideo_server.vision.tower import VisionTower, normalise, pixel_shuffle

# Frames in the tower at a time: bounds the memory at any length of video, and work ends soon after a stop.
CHUNK_FRAMES = 2 * FRAMES_PER_GROUP


class Stopped(Exception):  # noqa: N818 - no error: the caller asked for it
    """``should_stop`` said so."""


class VisionModel:
    """InternViT, HiCo merging and projector of one checkpoint on one device.

    Stateless after construction, so threads may share one; each call works through its frames in the same chunks
    whatever else runs, so an answer does not depend on its neighbours.

    Args:
        config: Sizes.
        tower: InternViT.
        projector: The checkpoint's ``mlp1``, on the tower's device and in its dtype.
    """

    def __init__(self, config: VisionConfig, tower: VisionTower, projector: nn.Sequential) -> None:
        self.config = config
        self.tower = tower
        self.projector = projector

    @classmethod
    def from_checkpoint(cls, path: Path, device: torch.device | str, dtype: torch.dtype) -> VisionModel:
        """Load the vision tensors of a checkpoint; the LLM's are not touched.

        Args:
            path: Directory in the layout of InternVideo2_5_Chat_8B.
            device: Where the model lives and runs.
            dtype: Of weights, activations and embeddings. Merging is float32 in any case.

        Raises:
            CheckpointError: The checkpoint is broken, or of a family member that the tower is not written for.
        """
        checkpoint = Checkpoint.open(path)
        config = VisionConfig.from_checkpoint(checkpoint)
        return cls(config, *load_vision(checkpoint, config, torch.device(device), dtype))

    @property
    def hidden_size(self) -> int:
        """Size of an embedding: the LLM's hidden size."""
        return self.config.llm_hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and of the embeddings."""
        return self.tower.embeddings.class_embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the model lives and runs."""
        return self.tower.embeddings.class_embedding.device

    @torch.inference_mode()
    def embed(self, frames: Tensor, should_stop: Callable[[], bool] | None = None) -> Tensor:
        """Turn frames into rows of the LLM's prompt table.

        Args:
            frames: uint8 RGB [T, 3, image_size, image_size] on any device, T a multiple of 4 (0 gives no rows).
            should_stop: Asked before every layer of every chunk; True ends the work. On CUDA the layers are queued
                ahead of their execution, so what is queued already still runs.

        Returns:
            [16 * T, hidden_size] in the model's dtype on its device, 16 rows a frame in the order of the frames.

        Raises:
            ValueError: ``frames`` has another dtype or shape.
            Stopped: ``should_stop`` returned True.
        """
        self._check(frames)

        def pause() -> None:
            if should_stop is not None and should_stop():
                raise Stopped

        rows = torch.empty(frames.shape[0] * TOKENS_PER_FRAME, self.hidden_size, dtype=self.dtype, device=self.device)
        for first in range(0, frames.shape[0], CHUNK_FRAMES):
            chunk = frames[first : first + CHUNK_FRAMES]
            place = slice(first * TOKENS_PER_FRAME, (first + chunk.shape[0]) * TOKENS_PER_FRAME)
            rows[place] = self._embed_chunk(chunk.to(self.device), pause)
        return rows

    def _embed_chunk(self, frames: Tensor, pause: Callable[[], None]) -> Tensor:
        x = normalise(frames).to(self.dtype)  # [B, 3, 448, 448]
        x = self.tower(x, pause)  # [B, 1025, C]
        x = pixel_shuffle(x, self.config.patches_per_side)  # [B, 256, 4 C]
        pause()
        groups = x.reshape(-1, FRAMES_PER_GROUP * self.config.tokens_per_frame, self.config.shuffled_size)
        merged = merge_tokens(groups, self.config.merge_heads, FRAMES_PER_GROUP * TOKENS_PER_FRAME)  # [B / 4, 64, 4 C]
        embeddings: Tensor = self.projector(merged.to(self.dtype))  # [B / 4, 64, hidden]
        return embeddings.flatten(0, 1)  # [16 B, hidden]

    def _check(self, frames: Tensor) -> None:
        side = self.config.image_size
        if frames.dtype != torch.uint8 or frames.dim() != 4 or tuple(frames.shape[1:]) != (3, side, side):
            raise ValueError(f"frames must be uint8 [T, 3, {side}, {side}], got {frames.dtype} {list(frames.shape)}")
        if frames.shape[0] % FRAMES_PER_GROUP:
            raise ValueError(f"the number of frames must be a multiple of {FRAMES_PER_GROUP}, got {frames.shape[0]}")
