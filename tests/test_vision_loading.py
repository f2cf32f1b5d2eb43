"""Checkpoints that the vision path must not load, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from internvideo_server.checkpoint import CheckpointError
from internvideo_server.vit.vision import VisionModel
from tests.small_vision import CONFIG, make_tensors, write_checkpoint


def edited(section: str, key: str, *value: object) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    place = config[section] if section else config
    del place[key]
    if value:
        place[key] = value[0]
    return config


@pytest.mark.parametrize(
    ("section", "key"),
    [
        *(("vision_config", key) for key in CONFIG["vision_config"]),
        ("llm_config", "num_attention_heads"),
        ("llm_config", "hidden_size"),
        ("", "downsample_ratio"),
        ("", "force_image_size"),
        ("", "ps_version"),
        ("", "select_layer"),
    ],
)
def test_a_missing_key_is_named_and_never_guessed(tmp_path: Path, section: str, key: str) -> None:
    write_checkpoint(tmp_path, edited(section, key))
    with pytest.raises(CheckpointError, match=rf"lacks ({section}\.)?{key}"):
        VisionModel.from_checkpoint(tmp_path, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("vision_config", "norm_type", "rms_norm", "vision_config.norm_type is 'rms_norm'"),
        ("vision_config", "qk_normalization", True, "vision_config.qk_normalization is True"),
        ("vision_config", "qkv_bias", False, "vision_config.qkv_bias is False"),
        ("vision_config", "hidden_act", "silu", "vision_config.hidden_act is 'silu'"),
        ("vision_config", "hidden_size", "12", "hidden_size must be a positive integer, got '12'"),
        ("vision_config", "num_hidden_layers", 0, "num_hidden_layers must be a positive integer, got 0"),
        ("vision_config", "num_attention_heads", 5, "not a multiple of 5 attention heads"),
        ("vision_config", "layer_norm_eps", "small", "layer_norm_eps must be a positive number, got 'small'"),
        ("vision_config", "patch_size", 15, "not a multiple of 2 x patch_size 15"),
        ("vision_config", "patch_size", 16, "cannot be halved to 16"),
        ("llm_config", "num_attention_heads", 5, "the LLM's 5 heads"),
        ("", "select_layer", -2, "select_layer is -2"),
        ("", "force_image_size", 448, "force_image_size is 448"),
    ],
)
def test_another_model_of_the_family_is_refused(tmp_path: Path, section: str, key: str, value: object, message: str) -> None:
    write_checkpoint(tmp_path, edited(section, key, value))
    with pytest.raises(CheckpointError, match=message):
        VisionModel.from_checkpoint(tmp_path, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("vision_model.encoder.layers.1.attn.qkv.bias", "missing"),
        ("mlp1.3.weight", "missing"),
        ("vision_model.encoder.layers.2.ls1", "unknown"),
        ("vision_model.embeddings.position_embedding", "misshaped"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_named(tmp_path: Path, name: str, change: str) -> None:
    tensors = make_tensors()
    if change == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(1, 5, 12)
    write_checkpoint(tmp_path, tensors=tensors)
    with pytest.raises(CheckpointError, match=name.split(".", 1)[1].replace(".", r"\.")):
        VisionModel.from_checkpoint(tmp_path, "cpu", torch.float32)
