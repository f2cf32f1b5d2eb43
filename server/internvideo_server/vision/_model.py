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


class Stopped(Exception):  # noqa: N818 - no error: the caller asked for it
    """``should_stop`` said so."""


class VisionModel:
    """InternViT, HiCo merging and projector of one checkpoint on one device.

    Stateless after construction, so threads may share one. The rows of a group of 4 frames are the same to the bit
    whatever stands beside them in a chunk.

    Args:
        config: Sizes.
        tower: InternViT.
        projector: The checkpoint's ``mlp1``, on the tower's device and in its dtype.

    Attributes:
        chunk_frames: Frames in the tower at a time, a multiple of 4: bounds the memory at any length of video.
    """

    # Products of another shape may round otherwise, so one shape serves all: a group alone.
    chunk_frames = FRAMES_PER_GROUP

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
        count = frames.shape[0]
        rows = torch.empty(count * TOKENS_PER_FRAME, self.hidden_size, dtype=self.dtype, device=self.device)
        for first in range(0, count, self.chunk_frames):
            last = min(first + self.chunk_frames, count)
            out = rows[first * TOKENS_PER_FRAME : last * TOKENS_PER_FRAME]
            self.embed_chunk(frames[first:last], out, should_stop)
        return rows

    @torch.inference_mode()
    def embed_chunk(self, frames: Tensor, out: Tensor | None = None, should_stop: Callable[[], bool] | None = None) -> Tensor:
        """Embed a few groups of 4 frames, which may be of different videos.

        Args:
            frames: uint8 RGB [n, 3, image_size, image_size] on any device, n a multiple of 4 and at most ``chunk_frames``.
            out: Where the rows go, [16 * n, hidden_size] in the model's dtype on its device.
            should_stop: As for :meth:`embed`.

        Returns:
            [16 * n, hidden_size], ``out`` where given. On CUDA the work is only queued, on the current stream: frames
            in pinned memory must stay as they are until it has run.

        Raises:
            ValueError: ``frames`` or ``out`` has another dtype or shape, or n is too large.
            Stopped: ``should_stop`` returned True; ``out`` may be half written.
        """
        self._check(frames)
        if frames.shape[0] > self.chunk_frames:
            raise ValueError(f"a chunk has at most {self.chunk_frames} frames, got {frames.shape[0]}")
        wanted = (frames.shape[0] * TOKENS_PER_FRAME, self.hidden_size)
        if out is None:
            out = torch.empty(wanted, dtype=self.dtype, device=self.device)
        elif out.shape != wanted or out.dtype != self.dtype:
            raise ValueError(f"out must be {self.dtype} {list(wanted)}, got {out.dtype} {list(out.shape)}")

        def pause() -> None:
            if should_stop is not None and should_stop():
                raise Stopped

        if frames.shape[0]:
            out.copy_(self._run(frames.to(self.device, non_blocking=True), pause))
        return out

    def _run(self, frames: Tensor, pause: Callable[[], None]) -> Tensor:
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
