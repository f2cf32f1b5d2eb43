"""What a person can choose when starting the server."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ._engine import REGION_COUNT
from ._errors import LaunchError

VIDEO_READERS = ("auto", "pyav", "nvdec", "decord")
VIT_QUANTIZATIONS = ("none", "fp8")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ServeOptions:
    """The settings of ``internvideo serve``. Ports: 0 means a free one.

    Args:
        checkpoint: Directory of InternVideo2_5_Chat_8B's files; None serves the small demo model that comes with the project.
        engine: Engine directory (``config.json``, ``tokenizer.json`` and ``llama/`` or TensorRT-LLM's ``rank*.engine``);
            None exports one from the checkpoint into the cache.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: ``cuda:0`` where there is a GPU that the installed torch can use.
        vit_device: Where the vision tower runs, in the same words; None: where the engine runs.
        vit_quantization: ``none``, or ``fp8``: a faster, less exact tower, for Ada, Hopper and newer GPUs.
        kv_cache_fraction: Share of the GPU memory that is free beside the engine, for a TensorRT-LLM engine's KV cache; None:
            what model_repository/tensorrt_llm says. The tower's memory must fit into the rest.
        dtype: Of the tower, the prompt table and the engine. ``auto``: the given engine's; without ``engine``, float32 on a CPU
            and bfloat16 on CUDA.
        num_frames: Frames sampled per video where the request does not say.
        max_frames: The most that a request may ask for.
        allowed_local_media_path: Directories below which ``file://`` URLs may point; none: no local files.
        host: Where the OpenAI adapter listens.
        port: The OpenAI adapter's port.
        triton_host: Where Triton listens (HTTP, gRPC and metrics). Its ports carry no authentication: keep them from strangers.
        triton_http_port: Triton's HTTP port.
        triton_grpc_port: Triton's gRPC port.
        triton_metrics_port: Triton's Prometheus port.
        decode_workers: Processes that decode video.
        max_queue_size: Requests that may wait in preprocessing before more are refused.
        video_reader: What reads videos: ``auto`` and ``pyav`` exactly and fast, ``nvdec`` likewise on the first GPU,
            ``decord`` as the original model did.
        frame_cache_mb: MiB of decoded frames that preprocessing keeps, by content; 0 keeps none.
        embedding_cache_mb: MiB of embeddings that vit keeps, on its device; 0 keeps none.
        cuda_region_count: Prompt tables that vit makes and hands over at once; more wait.
        cuda_region_mb: MiB of each; None: the engine's largest table.
        request_timeout_s: Longest time for a whole request, from the fetch to the last token.
        run_directory: Where the rendered repository, the backends and the logs go; new or empty, and kept. None: a temporary
            directory, removed at the end.
        ready_timeout_s: How long the start of tritonserver and the adapter may take.
        verbose: Show the logs while they are written.

    Raises:
        LaunchError: A value is out of range.
    """

    checkpoint: Path | None = None
    engine: Path | None = None
    device: str = "auto"
    vit_device: str | None = None
    vit_quantization: str = "none"
    kv_cache_fraction: float | None = None
    dtype: str = "auto"
    num_frames: int = 80
    max_frames: int = 128
    allowed_local_media_path: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 9997
    triton_host: str = "127.0.0.1"
    triton_http_port: int = 8000
    triton_grpc_port: int = 8001
    triton_metrics_port: int = 8002
    decode_workers: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    max_queue_size: int = 64
    video_reader: str = "auto"
    frame_cache_mb: int = 1024
    embedding_cache_mb: int = 1024
    cuda_region_count: int = REGION_COUNT
    cuda_region_mb: int | None = None
    request_timeout_s: float = 300.0
    run_directory: Path | None = None
    ready_timeout_s: float = 600.0
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.engine is not None and self.checkpoint is None:
            raise LaunchError(
                "--engine needs --checkpoint too: the vision tower comes from the checkpoint that the engine was made of"
            )
        for flag, given in (("--checkpoint", self.checkpoint), ("--engine", self.engine)):
            if given is not None and not given.is_dir():
                raise LaunchError(f"{flag} {given} is not a directory")
        if self.dtype not in DTYPES:
            raise LaunchError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.vit_quantization not in VIT_QUANTIZATIONS:
            raise LaunchError(f"--vit-quantization must be one of {', '.join(VIT_QUANTIZATIONS)}, got {self.vit_quantization!r}")
        for flag, frames in (("--num-frames", self.num_frames), ("--max-frames", self.max_frames)):
            if frames < 4 or frames % 4:
                raise LaunchError(f"{flag} must be a positive multiple of 4 (the tower merges groups of 4 frames), got {frames}")
        if self.kv_cache_fraction is not None and not 0 < self.kv_cache_fraction < 1:
            raise LaunchError(f"--kv-cache-fraction must be between 0 and 1, got {self.kv_cache_fraction}")
        if self.num_frames > self.max_frames:
            raise LaunchError(f"--num-frames {self.num_frames} is more than --max-frames {self.max_frames}")
        counts = {
            "--decode-workers": self.decode_workers,
            "--max-queue-size": self.max_queue_size,
            "--cuda-region-count": self.cuda_region_count,
            "--cuda-region-mb": 1 if self.cuda_region_mb is None else self.cuda_region_mb,
        }
        for name, count in counts.items():
            if count < 1:
                raise LaunchError(f"{name} must be at least 1, got {count}")
        if self.video_reader not in VIDEO_READERS:
            raise LaunchError(f"--video-reader must be one of {', '.join(VIDEO_READERS)}, got {self.video_reader!r}")
        for size, name in ((self.frame_cache_mb, "--frame-cache-mb"), (self.embedding_cache_mb, "--embedding-cache-mb")):
            if size < 0:
                raise LaunchError(f"{name} must be 0 or more, got {size}")
        if not self.request_timeout_s > 0:
            raise LaunchError(f"--request-timeout must be greater than 0, got {self.request_timeout_s}")
        for directory in self.allowed_local_media_path:
            if not directory.is_dir():
                raise LaunchError(f"--allowed-local-media-path {directory} is not a directory")
            if os.pathsep in str(directory.resolve()):
                raise LaunchError(f"--allowed-local-media-path {directory}: the path must not contain {os.pathsep!r}")


@dataclass(frozen=True)
class Device:
    """Where the tower and the embedded engine run: ``index`` None is the CPU."""

    index: int | None

    @property
    def name(self) -> str:
        """PyTorch's name: ``cpu`` or ``cuda:N``."""
        return "cpu" if self.index is None else f"cuda:{self.index}"

    @property
    def default_dtype(self) -> str:
        """What ``--dtype auto`` means here (bfloat16 is emulated, slowly, on most CPUs)."""
        return "float32" if self.index is None else "bfloat16"
