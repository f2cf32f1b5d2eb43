"""The vision path as one object: frames to embeddings."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor, nn

from internvideo_server.checkpoint import Checkpoint
from internvideo_server.deadline import Deadline
from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME

from ._config import VisionConfig
from ._cuda_graph import CudaGraphVision
from ._loading import load_vision
from ._plain import PlainVision
from .tower import VisionTower


class Quantization(StrEnum):
    """Of the products in the MLPs of the tower's layers."""

    NONE = "none"
    FP8 = "fp8"  # weights and activations, a scale for each row; less exact: docs/performance.md


class VisionModel:
    """InternViT, HiCo merging and projector of one checkpoint on one device.

    In half precision on CUDA it runs from rearranged weights as a CUDA graph, made here; otherwise as the modules are
    written. Threads may share one. The rows of a group of 4 frames are the same to the bit whatever stands beside them
    in a chunk.

    Args:
        config: Sizes.
        tower: InternViT.
        projector: The checkpoint's ``mlp1``, on the tower's device and in its dtype.
        quantization: FP8 needs half precision on a CUDA device of compute capability 8.9 or higher, and sizes that are
            multiples of 16.

    Raises:
        ValueError: The device, dtype or sizes do not allow the quantisation.

    Attributes:
        config: Sizes.
        projector: As given.
        device: Where the model lives and runs.
        dtype: Of the weights and of the embeddings.
        chunk_frames: Frames in the tower at a time, a multiple of 4: bounds the memory at any length of video.
    """

    def __init__(
        self,
        config: VisionConfig,
        tower: VisionTower,
        projector: nn.Sequential,
        quantization: Quantization = Quantization.NONE,
    ) -> None:
        self.config = config
        self.projector = projector
        token = tower.embeddings.class_embedding
        self.device, self.dtype = token.device, token.dtype
        self._path: PlainVision | CudaGraphVision
        if self.device.type == "cuda":
            # Similarity must not be rounded to TF32, which some containers switch on for all products of a process.
            torch.set_float32_matmul_precision("highest")
        fast = self.device.type == "cuda" and self.dtype != torch.float32
        if quantization == Quantization.FP8:
            _check_fp8(config, self.device, fast)
        if fast:
            self._path = CudaGraphVision(config, tower, projector, fp8=quantization == Quantization.FP8)
        else:
            self._path = PlainVision(config, tower, projector)
        self.chunk_frames: int = self._path.chunk_frames

    @classmethod
    def from_checkpoint(
        cls, path: Path, device: torch.device | str, dtype: torch.dtype, quantization: Quantization = Quantization.NONE
    ) -> VisionModel:
        """Load the vision tensors of a checkpoint; the LLM's are not touched.

        Args:
            path: Directory in the layout of InternVideo2_5_Chat_8B.
            device: Where the model lives and runs.
            dtype: Of weights, activations and embeddings. Merging is float32 in any case.
            quantization: See the class.

        Raises:
            CheckpointError: The checkpoint is broken, or of a family member that the tower is not written for.
            ValueError: See the class.
        """
        checkpoint = Checkpoint.open(path)
        config = VisionConfig.from_checkpoint(checkpoint)
        model = cls(config, *load_vision(checkpoint, config, torch.device(device), dtype), quantization)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # of the weights as they were read, which are not kept
        return model

    @property
    def hidden_size(self) -> int:
        """Size of an embedding: the LLM's hidden size."""
        return self.config.llm_hidden_size

    @torch.inference_mode()
    def embed(self, frames: Tensor, deadline: Deadline | None = None) -> Tensor:
        """Turn frames into rows of the LLM's prompt table.

        Args:
            frames: uint8 RGB [T, 3, image_size, image_size] on any device, T a multiple of 4 (0 gives no rows).
            deadline: Checked before every layer of every chunk, in half precision on CUDA before every chunk. On CUDA what is
                queued already still runs.

        Returns:
            [16 * T, hidden_size] in the model's dtype on its device, 16 rows a frame in the order of the frames.

        Raises:
            ValueError: ``frames`` has another dtype or shape.
            ServingError: CANCELLED or DEADLINE_EXCEEDED, by the deadline.
        """
        self._check(frames)
        count = frames.shape[0]
        rows = torch.empty(count * TOKENS_PER_FRAME, self.hidden_size, dtype=self.dtype, device=self.device)
        for first in range(0, count, self.chunk_frames):
            last = min(first + self.chunk_frames, count)
            out = rows[first * TOKENS_PER_FRAME : last * TOKENS_PER_FRAME]
            self.embed_chunk(frames[first:last], out, deadline)
        return rows

    @torch.inference_mode()
    def embed_chunk(self, frames: Tensor, out: Tensor | None = None, deadline: Deadline | None = None) -> Tensor:
        """Embed a few groups of 4 frames, which may be of different videos.

        Args:
            frames: uint8 RGB [n, 3, image_size, image_size] on any device, n a multiple of 4 and at most ``chunk_frames``.
            out: Where the rows go, [16 * n, hidden_size] in the model's dtype on its device.
            deadline: As for :meth:`embed`.

        Returns:
            [16 * n, hidden_size], ``out`` where given. On CUDA the work is only queued, on the current stream: frames
            in pinned memory must stay as they are until it has run.

        Raises:
            ValueError: ``frames`` or ``out`` has another dtype or shape, or n is too large.
            ServingError: CANCELLED or DEADLINE_EXCEEDED, by the deadline; ``out`` may be half written.
        """
        self._check(frames)
        if frames.shape[0] > self.chunk_frames:
            raise ValueError(f"a chunk has at most {self.chunk_frames} frames, got {frames.shape[0]}")
        wanted = (frames.shape[0] * TOKENS_PER_FRAME, self.hidden_size)
        if out is None:
            out = torch.empty(wanted, dtype=self.dtype, device=self.device)
        elif out.shape != wanted or out.dtype != self.dtype:
            raise ValueError(f"out must be {self.dtype} {list(wanted)}, got {out.dtype} {list(out.shape)}")
        if frames.shape[0]:
            self._path.embed(frames, out, deadline or Deadline())
        return out

    @torch.inference_mode()
    def tokens(self, frames: Tensor) -> Tensor:
        """The tower's output before merging, to measure its accuracy by.

        Args:
            frames: uint8 RGB [n, 3, image_size, image_size].

        Returns:
            float32 [n, 1 + patches, C], the class token first.
        """
        return self._path.tokens(frames)

    def _check(self, frames: Tensor) -> None:
        side = self.config.image_size
        if frames.dtype != torch.uint8 or frames.dim() != 4 or tuple(frames.shape[1:]) != (3, side, side):
            raise ValueError(f"frames must be uint8 [T, 3, {side}, {side}], got {frames.dtype} {list(frames.shape)}")
        if frames.shape[0] % FRAMES_PER_GROUP:
            raise ValueError(f"the number of frames must be a multiple of {FRAMES_PER_GROUP}, got {frames.shape[0]}")


def _check_fp8(config: VisionConfig, device: torch.device, fast: bool) -> None:
    if not fast:
        raise ValueError("FP8 is for float16 and bfloat16 on CUDA devices")
    if torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no FP8: it takes an Ada, Hopper or newer GPU")
    if config.hidden_size % 16 or config.mlp_size % 16:
        raise ValueError(f"FP8 takes sizes that are multiples of 16, not {config.hidden_size} and {config.mlp_size}")
