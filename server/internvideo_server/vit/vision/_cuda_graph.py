"""The fast path as a CUDA graph of one chunk: some 300 kernels start without Python between them."""

from __future__ import annotations

import logging
import threading

import torch
from torch import Tensor, nn

from internvideo_server.deadline import Deadline
from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME

from ._config import VisionConfig
from ._fast import FastVision
from .tower import RUNNING, VisionTower

logger = logging.getLogger(__name__)


class CudaGraphVision:
    """Records at construction, and plays for every chunk.

    Threads may share it, each on its own stream: chunks take turns, on the GPU too.

    Args:
        config: Sizes.
        tower: InternViT in half precision on a CUDA device; not kept.
        projector: ``mlp1``, likewise.
        fp8: The products of the layers' MLPs in FP8.

    Attributes:
        chunk_frames: Of the recorded shape; a shorter chunk takes the same time. Measured: docs/performance.md.
    """

    chunk_frames = 4 * FRAMES_PER_GROUP

    def __init__(self, config: VisionConfig, tower: VisionTower, projector: nn.Sequential, *, fp8: bool) -> None:
        side, device = config.image_size, tower.embeddings.class_embedding.device
        self._frames = torch.zeros(self.chunk_frames, 3, side, side, dtype=torch.uint8, device=device)
        self._lock = threading.Lock()
        self._last = torch.cuda.Event()  # type: ignore[no-untyped-call]
        try:
            self._fast = FastVision(config, tower, projector, fp8=fp8, compiled=True)
            self._record()
        except Exception as error:  # no Triton language or no C compiler on this host; what is another's fault fails again
            logger.warning("the vision tower will be slower, as compiling failed: %s", error)
            self._fast = FastVision(config, tower, projector, fp8=fp8, compiled=False)
            self._record()

    def embed(self, frames: Tensor, out: Tensor, deadline: Deadline) -> None:
        """Queue a chunk on the current stream: see :meth:`PlainVision.embed`; the deadline is checked before it alone."""
        deadline.check(RUNNING)
        count = frames.shape[0]
        with self._lock, torch.cuda.device(self._frames.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._last)
            self._frames[:count].copy_(frames, non_blocking=True)  # the other places keep what they have
            self._graph.replay()
            out.copy_(self._rows[: count * TOKENS_PER_FRAME])
            self._last.record(stream)

    def tokens(self, frames: Tensor) -> Tensor:
        """The tower's output, float32 [n, 1 + patches, C]."""
        chunks = []
        for chunk in torch.split(frames, self.chunk_frames):
            filled = torch.zeros_like(self._frames)  # compiled for this shape
            filled[: len(chunk)] = chunk
            chunks.append(self._fast.tokens(filled)[: len(chunk)])
        return torch.cat(chunks)

    def _record(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(self._frames.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._frames.device))
        with torch.cuda.stream(stream):
            self._fast.rows(self._frames)  # compiles and chooses kernels, which cannot be recorded
            # Other threads of the process may use the GPU meanwhile.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._rows = self._fast.rows(self._frames)
        stream.synchronize()
