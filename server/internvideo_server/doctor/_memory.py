"""How much GPU memory an engine needs, computed from its config.json. ``docs/production.md`` has the table of these figures.

Weights, KV cache and prompt tables are exact. The engine's allowance is no measurement, the tower's is one on one GPU: what
TensorRT-LLM and torch take for contexts, activations and buffers differs from GPU to GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import Checkpoint
from ..launch._engine import pretrained_config, prompt_table_bytes
from ..limits import EngineLimits
from ._shapes import expected_shapes

GIB = 1 << 30
ENGINE_ALLOWANCE = 2 * GIB  # CUDA context, activations of max_num_tokens, sampling buffers
# CUDA context of the tower's process, kernels, the memory of its recorded chunk: 1.25 GiB measured beside the weights on an
# H200 (torch 2.11, bfloat16). While they are rearranged the weights are there twice.
VISION_ALLOWANCE = 2 * GIB


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on one GPU, the one that runs the vision tower too."""

    weights: int
    kv_cache: int  # every request of a batch at its full length: with this much none ever waits for another
    prompt_tables: int
    vision: int
    kv_per_request: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.prompt_tables + self.vision + ENGINE_ALLOWANCE

    @property
    def least(self) -> int:
        """The same with a KV cache for one request alone, below which a request of full length cannot run."""
        return self.total - self.kv_cache + self.kv_per_request

    def explain(self) -> str:
        """The sum, in GiB."""
        parts = {
            "weights": self.weights,
            "KV cache": self.kv_cache,
            "prompt tables": self.prompt_tables,
            "vision tower": self.vision,
            "allowance": ENGINE_ALLOWANCE,
        }
        return " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())


def memory_need(checkpoint: Checkpoint, engine: Path, limits: EngineLimits) -> MemoryNeed:
    """What the GPU of the first rank holds.

    Args:
        checkpoint: Gives the language model's shape and the vision tower's weights.
        engine: Engine directory; its files give the weights' size, its config.json the ranks and the KV cache's dtype.
        limits: Of the engine.
    """
    weights = max((file.stat().st_size for file in engine.glob("rank*.engine")), default=0)
    if not weights:
        weights = sum(file.stat().st_size for file in (engine / "llama").glob("*.safetensors"))
    config = pretrained_config(engine)
    mapping = config.get("mapping", {})
    algorithm = config.get("quantization", {}).get("kv_cache_quant_algo")
    kv_element = 1 if algorithm in ("FP8", "INT8") else limits.element_bytes
    token = kv_bytes_per_token(checkpoint.llm_config, mapping.get("tp_size", 1), mapping.get("pp_size", 1), kv_element)
    vision = vision_parameters(checkpoint) * limits.element_bytes + VISION_ALLOWANCE
    tables = prompt_table_bytes(limits)
    request = limits.max_seq_len * token
    return MemoryNeed(weights, limits.max_batch_size * request, tables, vision, kv_per_request=request)


def kv_bytes_per_token(llm_config: dict[str, int], tp: int, pp: int, element: int) -> int:
    """Keys and values of one token on one rank."""
    layers = -(-llm_config["num_hidden_layers"] // pp)
    kv_heads = -(-llm_config["num_key_value_heads"] // tp)
    return 2 * layers * kv_heads * (llm_config["hidden_size"] // llm_config["num_attention_heads"]) * element


def vision_parameters(checkpoint: Checkpoint) -> int:
    """Parameters of the vision tower and the projector."""
    shapes = expected_shapes(checkpoint).items()
    return sum(math.prod(shape) for name, shape in shapes if not name.startswith("language_model."))
