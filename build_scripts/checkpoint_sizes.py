"""Random checkpoints in the real layout: sizes, ``config.json`` and the spread of each tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from build_scripts.random_tokenizer import SMALLEST_VOCABULARY
from internvideo_server.checkpoint_layout import tensor_shapes

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
    for name, shape in tensor_shapes(model_config(d, "float32")).items():
        std, mean = _spread(name, shape)
        yield TensorSpec(name, shape, std, mean)


# Of the products that are not plain mappings of activations near 1 to activations near 1.
_GAINS = {
    "attn.qkv.weight": 1.5,
    "attention.wqkv.weight": 1.5,
    "feed_forward.w1.weight": 1.5,
    "language_model.output.weight": 3.0,
    "mlp1.3.weight": 2.0,
    "patch_embedding.weight": 2.0,
}
_OTHER_SPREADS = {".bias": (0.1, 0.0), ".ls1": (0.2, 0.5), ".ls2": (0.2, 0.5)}
_OTHER_SPREADS |= {"class_embedding": (1.0, 0.0), "position_embedding": (0.5, 0.0), "tok_embeddings.weight": (1.0, 0.0)}


def _spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Standard deviation and mean."""
    for ending, spread in _OTHER_SPREADS.items():
        if name.endswith(ending):
            return spread
    if len(shape) == 1:  # the weight of a norm
        return 0.2, 1.0
    gain = next((gain for ending, gain in _GAINS.items() if name.endswith(ending)), 1.0)
    return gain / math.sqrt(math.prod(shape[1:])), 0.0


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
