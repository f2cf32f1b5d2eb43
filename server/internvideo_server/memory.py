"""How much memory a deployment needs, from the model's shape and the limits: for the launcher, the doctor, the engines, the docs.

Weights, KV cache and prompt tables are exact. The allowances are not: what TensorRT-LLM, vLLM and torch take for contexts,
activations and buffers differs from GPU to GPU; those of the tower and of vLLM were measured on an H200.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from internvideo_server.checkpoint_layout import tensor_shapes
from internvideo_server.context import Context
from internvideo_server.engine_directory import cuda_pool_bytes, pretrained_config
from internvideo_server.limits import ELEMENT_BYTES, FRAMES_PER_GROUP, TOKENS_PER_FRAME, EngineLimits

GIB = 1 << 30
LEFT_FREE = 2 * GIB  # of a GPU, where --gpu-memory does not say
ENGINE_ALLOWANCE = 2 * GIB  # CUDA context, activations of max_num_tokens, sampling buffers
VLLM_ALLOWANCE = 3 * GIB  # the same with its graphs
# CUDA context of the tower's process, kernels, the memory of its recorded chunk: 1.25 GiB measured beside the weights on an
# H200 (torch 2.11, bfloat16). While they are rearranged the weights are there twice.
VISION_ALLOWANCE = 2 * GIB
VLLM_VISION_ALLOWANCE = 7 * GIB // 2
MIB = 1 << 20
EMBEDDING_CACHE = GIB  # where nobody knows how much memory there is
_LEAST_CACHE, _MOST_CACHE = 256 * MIB, 2 * GIB
_REAL_TOWER = 337_583_104  # parameters, where config.json is not at hand


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on one GPU, the one that runs the vision tower too."""

    weights: int
    kv_cache: int  # every request of a batch at its full length: with this much none ever waits for another
    prompt_tables: int
    vision: int
    kv_per_request: int
    allowance: int = ENGINE_ALLOWANCE
    tower_allowance: int = VISION_ALLOWANCE  # of what ``vision`` counts: all but the weights

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.prompt_tables + self.vision + self.allowance

    @property
    def total(self) -> int:
        """Bytes with a KV cache for a full batch."""
        return self.fixed + self.kv_cache

    @property
    def least(self) -> int:
        """The same with a KV cache for one request alone, below which a request of full length cannot run."""
        return self.fixed + self.kv_per_request

    def kv_within(self, budget: int) -> int:
        """Bytes for keys and values where all must stay within ``budget``: at most those of a full batch.

        Raises:
            ValueError: Not even one request of full length fits.
        """
        left = budget - self.fixed
        if left < self.kv_per_request:
            raise ValueError(
                f"{left / GIB:.1f} GiB are left for keys and values, one request of full length takes "
                f"{self.kv_per_request / GIB:.1f} ({self.explain()}): give more by --gpu-memory, lower --max-frames or "
                "--max-model-len, or quantise (--llm-quantization fp8, --kv-cache-dtype fp8)"
            )
        return min(left, self.kv_cache)

    def explain(self) -> str:
        """The sum, in GiB."""
        parts = {
            "weights": self.weights,
            "KV cache": self.kv_cache,
            "prompt tables": self.prompt_tables,
            "vision tower": self.vision,
            "allowance": self.allowance,
        }
        return " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())


@dataclass(frozen=True)
class Deployment:
    """What decides the memory beside frames and tokens.

    Attributes:
        config: The checkpoint's config.json, or its ``llm_config`` alone.
        dtype: Of tower, tables and whatever is not quantised.
        max_batch_size: Requests in flight at once.
        region_count: Prompt tables that `vit` makes at once.
        weights: Bytes of the language model on one GPU, where files tell; None: by its shape.
        vllm: Whether vLLM runs the language model: it has measures of its own.
        quantized: Whether its matrices have 8 bits.
        kv_element: Bytes of one key or value; None: as the dtype's.
        tp: GPUs that share each layer.
        pp: Groups of GPUs that share the layers.
        region_bytes: Of each prompt table, where the operator says; None: as large as the largest.
        tower: Whether the vision tower runs on this GPU too.
    """

    config: Mapping[str, Any]
    dtype: str
    max_batch_size: int
    region_count: int
    weights: int | None = None
    vllm: bool = False
    quantized: bool = False
    kv_element: int | None = None
    tp: int = 1
    pp: int = 1
    region_bytes: int | None = None
    tower: bool = True

    def need(self, context: Context) -> MemoryNeed:
        """What requests of that length take."""
        element, llm = ELEMENT_BYTES[self.dtype], self.config["llm_config"]
        table = context.max_frames * TOKENS_PER_FRAME * llm["hidden_size"] * element
        region = table if self.region_bytes is None else self.region_bytes
        request = context.max_model_len * kv_bytes_per_token(llm, self.tp, self.pp, self.kv_element or element)
        tower = vision_parameters(self.config) if "vision_config" in self.config else _REAL_TOWER
        spare = VLLM_VISION_ALLOWANCE if self.vllm else VISION_ALLOWANCE
        weights = self.weights
        if weights is None:
            weights = language_parameters(self.config) * element // (self.tp * self.pp)
        if self.quantized and element > 1:
            weights = weights * 11 // (10 * element)  # embedding and head stay: 7.95 of 14.42 GiB were measured
        return MemoryNeed(
            weights,
            # vLLM: twice a full batch, the rest keeps beginnings that come again.
            self.max_batch_size * request * (2 if self.vllm else 1),
            self.region_count * region + cuda_pool_bytes(self.region_count, region) + self.max_batch_size * table,
            tower * element + spare if self.tower else 0,
            kv_per_request=request,
            allowance=VLLM_ALLOWANCE if self.vllm else ENGINE_ALLOWANCE,
            tower_allowance=spare if self.tower else 0,
        )

    def on_vllm(self, quantization: str, kv_cache_dtype: str, tensor_parallel_size: int) -> Deployment:
        """The same language model on vLLM, by its options' words."""
        return replace(
            self,
            vllm=True,
            weights=None if self.weights is None else self.weights // tensor_parallel_size,
            quantized=quantization != "none",
            kv_element=1 if kv_cache_dtype == "fp8" else self.kv_element,
            tp=tensor_parallel_size,
        )

    def most_frames(self, budget: int, max_frames: int, max_model_len: int | None = None) -> int:
        """The most frames of a request, up to ``max_frames``, with which it fits into so many bytes; 0: none do."""
        for frames in range(max_frames - max_frames % FRAMES_PER_GROUP, 0, -FRAMES_PER_GROUP):
            if self.need(Context.of(frames, max_model_len)).least <= budget:
                return frames
        return 0


def budget(free: int, gpu_memory: float | None) -> int:
    """Bytes of a GPU that tower, tables and engine may take together.

    Args:
        free: Before any of them is there.
        gpu_memory: GiB, as the operator says.
    """
    return free - LEFT_FREE if gpu_memory is None else min(free, int(gpu_memory * GIB))


def embedding_cache_bytes(left: int | None) -> int:
    """Of embeddings that come again, where the operator does not say: an eighth of what is left, from 256 MiB to 2 GiB.

    Args:
        left: Bytes of the tower's device beside all that a request takes there; None: not known.
    """
    return EMBEDDING_CACHE if left is None else min(_MOST_CACHE, max(_LEAST_CACHE, left // 8 // MIB * MIB))


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of this host's memory, or of this process's control group, that can be had; None: not known."""
    found = []
    with suppress(OSError, StopIteration):
        lines = (root / "proc" / "meminfo").read_text().splitlines()
        found.append(int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) << 10)
    group = root / "sys" / "fs" / "cgroup"
    own = ""
    with suppress(OSError):
        own = (root / "proc" / "self" / "cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    for folder in {group / own, group}:
        with suppress(OSError, ValueError):  # ValueError: "max", no limit
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found.append(limit - used + int(stat.get("inactive_file", 0)))  # the kernel gives those of files back first
    return max(0, min(found)) if found else None


def deployment_of(config: Mapping[str, Any], engine: Path, limits: EngineLimits, region_count: int, **more: Any) -> Deployment:
    """What an engine directory holds.

    Args:
        config: The checkpoint's config.json.
        engine: Its files give the weights' size, its config.json the ranks and the KV cache's dtype.
        limits: Its limits.
        region_count: Prompt tables that `vit` makes at once.
        **more: Of :class:`Deployment`.
    """
    weights = max((file.stat().st_size for file in engine.glob("rank*.engine")), default=0)
    if not weights:
        weights = sum(file.stat().st_size for file in (engine / "llama").glob("*.safetensors"))
    built = pretrained_config(engine)
    mapping = built.get("mapping", {})
    cached = built.get("quantization", {}).get("kv_cache_quant_algo")
    tp, pp = mapping.get("tp_size", 1), mapping.get("pp_size", 1)
    found = Deployment(config, limits.dtype, limits.max_batch_size, region_count, weights, tp=tp, pp=pp)
    return replace(found, kv_element=1 if cached in ("FP8", "INT8") else None, **more)


def kv_bytes_per_token(llm_config: Mapping[str, int], tp: int, pp: int, element: int) -> int:
    """Keys and values of one token on one rank."""
    layers = -(-llm_config["num_hidden_layers"] // pp)
    kv_heads = -(-llm_config["num_key_value_heads"] // tp)
    head_dim = llm_config.get("head_dim") or llm_config["hidden_size"] // llm_config["num_attention_heads"]
    return 2 * layers * kv_heads * head_dim * element


def vision_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of the vision tower and the projector, by config.json."""
    return sum(size for name, size in _sizes(config) if not name.startswith("language_model."))


def language_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of the language model, by config.json."""
    return sum(size for name, size in _sizes(config) if name.startswith("language_model."))


def _sizes(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(name, math.prod(shape)) for name, shape in tensor_shapes(dict(config)).items()]


def kv_cache_bytes(
    engine_dir: Path,
    limits: EngineLimits,
    free: int,
    gpu_memory: float | None = None,
    *,
    adapt: Callable[[Deployment], Deployment] = lambda deployment: deployment,
    region_count: int = 8,
) -> int:
    """Bytes of one GPU for keys and values, for an engine that is about to load ``llama/`` of its directory.

    Args:
        engine_dir: Gives the weights' size and the model's shape.
        limits: Of the engine.
        free: Bytes free on the GPU before the language model is loaded.
        gpu_memory: GiB for tower, tables and engine together; None: what is free less 2.
        adapt: Makes of what the directory holds what is run of it.
        region_count: Prompt tables that `vit` makes at once.

    Raises:
        ValueError: Not even one request of full length fits.
    """
    shape = json.loads((engine_dir / "llama" / "config.json").read_text())
    found = adapt(deployment_of({"llm_config": shape}, engine_dir, limits, region_count))
    return found.need(Context(limits.max_frames, limits.max_seq_len)).kv_within(budget(free, gpu_memory))
