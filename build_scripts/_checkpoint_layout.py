"""What the real checkpoint is made of: the names and shapes of its tensors and its ``config.json``, at two sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from build_scripts._random_tokenizer import SMALLEST_VOCABULARY

IMAGE_SIZE, PATCH_SIZE = 448, 14


class Size(StrEnum):
    """``full`` has the real dimensions: 8.08 billion parameters, 16.15 GB in bfloat16."""

    TINY = "tiny"
    FULL = "full"


@dataclass(frozen=True)
class Dimensions:
    """What differs between the sizes."""

    vit_hidden: int
    vit_layers: int
    vit_heads: int
    vit_mlp: int
    llm_hidden: int
    llm_layers: int
    llm_heads: int
    llm_kv_heads: int
    llm_mlp: int
    vocab_size: int


DIMENSIONS = {
    Size.TINY: Dimensions(64, 2, 4, 128, 64, 2, 4, 2, 128, SMALLEST_VOCABULARY),
    Size.FULL: Dimensions(1024, 24, 16, 4096, 4096, 32, 32, 8, 14336, 92560),
}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: normally distributed around ``mean``."""

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0


def tensor_specs(d: Dimensions) -> Iterator[TensorSpec]:
    """All tensors, in the original module's order; the spreads keep activations near 1 and give attention peaks."""
    yield from _vision_specs(d)
    yield from _llm_specs(d)
    joined = 4 * d.vit_hidden  # pixel shuffle joins 2 x 2 patches
    yield from _affine("mlp1.0", joined)
    yield from _linear("mlp1.1", d.llm_hidden, joined, gain=1.0)
    yield from _linear("mlp1.3", d.llm_hidden, d.llm_hidden, gain=2.0)


def _vision_specs(d: Dimensions) -> Iterator[TensorSpec]:
    h, patches = d.vit_hidden, (IMAGE_SIZE // PATCH_SIZE) ** 2
    embeddings = "vision_model.embeddings"
    yield TensorSpec(f"{embeddings}.class_embedding", (1, 1, h), 1.0)
    yield TensorSpec(f"{embeddings}.position_embedding", (1, 1 + patches, h), 0.5)
    fan_in = 3 * PATCH_SIZE * PATCH_SIZE
    yield TensorSpec(f"{embeddings}.patch_embedding.weight", (h, 3, PATCH_SIZE, PATCH_SIZE), 2 / math.sqrt(fan_in))
    yield TensorSpec(f"{embeddings}.patch_embedding.bias", (h,), 0.1)
    for layer in range(d.vit_layers):
        prefix = f"vision_model.encoder.layers.{layer}"
        yield TensorSpec(f"{prefix}.ls1", (h,), 0.2, mean=0.5)
        yield TensorSpec(f"{prefix}.ls2", (h,), 0.2, mean=0.5)
        yield from _linear(f"{prefix}.attn.qkv", 3 * h, h, gain=1.5)
        yield from _linear(f"{prefix}.attn.proj", h, h, gain=1.0)
        yield from _linear(f"{prefix}.mlp.fc1", d.vit_mlp, h, gain=1.0)
        yield from _linear(f"{prefix}.mlp.fc2", h, d.vit_mlp, gain=1.0)
        yield from _affine(f"{prefix}.norm1", h)
        yield from _affine(f"{prefix}.norm2", h)


def _llm_specs(d: Dimensions) -> Iterator[TensorSpec]:
    h, model = d.llm_hidden, "language_model.model"
    qkv_rows = h + 2 * d.llm_kv_heads * (h // d.llm_heads)
    yield TensorSpec(f"{model}.tok_embeddings.weight", (d.vocab_size, h), 1.0)
    for layer in range(d.llm_layers):
        prefix = f"{model}.layers.{layer}"
        yield _matrix(f"{prefix}.attention.wqkv.weight", qkv_rows, h, gain=1.5)
        yield _matrix(f"{prefix}.attention.wo.weight", h, h, gain=1.0)
        yield _matrix(f"{prefix}.feed_forward.w1.weight", d.llm_mlp, h, gain=1.5)
        yield _matrix(f"{prefix}.feed_forward.w3.weight", d.llm_mlp, h, gain=1.0)
        yield _matrix(f"{prefix}.feed_forward.w2.weight", h, d.llm_mlp, gain=1.0)
        yield TensorSpec(f"{prefix}.attention_norm.weight", (h,), 0.2, mean=1.0)
        yield TensorSpec(f"{prefix}.ffn_norm.weight", (h,), 0.2, mean=1.0)
    yield TensorSpec(f"{model}.norm.weight", (h,), 0.2, mean=1.0)
    yield _matrix("language_model.output.weight", d.vocab_size, h, gain=3.0)


def _matrix(name: str, rows: int, columns: int, gain: float) -> TensorSpec:
    return TensorSpec(name, (rows, columns), gain / math.sqrt(columns))


def _linear(prefix: str, rows: int, columns: int, gain: float) -> Iterator[TensorSpec]:
    yield _matrix(f"{prefix}.weight", rows, columns, gain)
    yield TensorSpec(f"{prefix}.bias", (rows,), 0.1)


def _affine(prefix: str, size: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}.weight", (size,), 0.2, mean=1.0)
    yield TensorSpec(f"{prefix}.bias", (size,), 0.1)


def model_config(d: Dimensions, dtype: str) -> dict[str, Any]:
    """``config.json``; the keys that are equal for both sizes are the real checkpoint's."""
    vision = {
        "architectures": ["InternVisionModel"],
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": d.vit_hidden,
        "image_size": IMAGE_SIZE,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": d.vit_mlp,
        "layer_norm_eps": 1e-06,
        "model_type": "intern_vit_6b",
        "norm_type": "layer_norm",
        "num_attention_heads": d.vit_heads,
        "num_channels": 3,
        "num_hidden_layers": d.vit_layers,
        "patch_size": PATCH_SIZE,
        "qk_normalization": False,
        "qkv_bias": True,
        "torch_dtype": dtype,
        "use_flash_attn": True,
    }
    llm = {
        "_name_or_path": "internlm/internlm2_5-7b-chat",
        "architectures": ["InternLM2ForCausalLM"],
        "attn_implementation": "flash_attention_2",
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": d.llm_hidden,
        "initializer_range": 0.02,
        "intermediate_size": d.llm_mlp,
        "max_position_embeddings": 32768,
        "model_type": "internlm2",
        "num_attention_heads": d.llm_heads,
        "num_hidden_layers": d.llm_layers,
        "num_key_value_heads": d.llm_kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": d.vocab_size,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat_hico2.InternVLChatModel",
            "AutoModelForCausalLM": "modeling_internvl_chat_hico2.InternVLChatModel",
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": IMAGE_SIZE,
        "llm_config": llm,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": dtype,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": vision,
    }
