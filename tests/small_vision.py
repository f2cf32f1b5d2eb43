"""A checkpoint with a vision path of 16 x 16 patches, smaller than the tiny one, for tests that look at each value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# 16 x 16 patches -> 64 tokens a frame -> two rounds of merging. All sizes differ, so that none can stand for another.
CONFIG: dict[str, Any] = {
    "downsample_ratio": 0.5,
    "force_image_size": 224,
    "ps_version": "v2",
    "select_layer": -1,
    "llm_config": {"hidden_size": 20, "num_attention_heads": 6, "vocab_size": 3},
    "vision_config": {
        "hidden_act": "gelu",
        "hidden_size": 12,
        "image_size": 224,
        "intermediate_size": 28,
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "num_attention_heads": 3,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "patch_size": 14,
        "qk_normalization": False,
        "qkv_bias": True,
    },
}


def make_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / max(1, shape[-1]) ** 0.5

    tensors = {
        "vision_model.embeddings.class_embedding": random(1, 1, 12),
        "vision_model.embeddings.position_embedding": random(1, 257, 12),
        "vision_model.embeddings.patch_embedding.weight": random(12, 3, 14, 14) / 14,
        "vision_model.embeddings.patch_embedding.bias": random(12),
        "mlp1.0.weight": 1 + random(48),
        "mlp1.0.bias": random(48),
        "mlp1.1.weight": random(20, 48),
        "mlp1.1.bias": random(20),
        "mlp1.3.weight": random(20, 20),
        "mlp1.3.bias": random(20),
        "language_model.model.tok_embeddings.weight": random(3, 20),
        "language_model.output.weight": random(3, 20),
    }
    for layer in range(2):
        name = f"vision_model.encoder.layers.{layer}."
        for part, out, into in [("attn.qkv", 36, 12), ("attn.proj", 12, 12), ("mlp.fc1", 28, 12), ("mlp.fc2", 12, 28)]:
            tensors |= {f"{name}{part}.weight": random(out, into), f"{name}{part}.bias": random(out)}
        for part in ("norm1", "norm2"):
            tensors |= {f"{name}{part}.weight": 1 + random(12), f"{name}{part}.bias": random(12)}
        tensors |= {f"{name}ls1": 1 + random(12), f"{name}ls2": 1 + random(12)}
    return tensors


def write_checkpoint(folder: Path, config: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    save_file(make_tensors() if tensors is None else tensors, folder / "model.safetensors")
    return folder
