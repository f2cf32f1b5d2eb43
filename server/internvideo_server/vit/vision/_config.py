"""What the vision path needs to know of a checkpoint's config.json, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from internvideo_server.checkpoint import Checkpoint, CheckpointError
from internvideo_server.limits import TOKENS_PER_FRAME

SHUFFLE = 2  # pixel shuffle joins 2 x 2 patches (downsample_ratio 0.5)

# What the tower is written for. Other members of the family differ here, and would load and answer nonsense.
_VISION_FIXED = {
    "hidden_act": "gelu",
    "norm_type": "layer_norm",
    "qk_normalization": False,
    "qkv_bias": True,
    "num_channels": 3,
}
_TOP_FIXED = {"downsample_ratio": 1 / SHUFFLE, "ps_version": "v2", "select_layer": -1}


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of InternViT and of what follows it.

    The class defaults of the original code (and of transformers' InternVLVisionConfig) belong to other models of the
    family, so nothing has a default here: a missing key is an error.
    """

    image_size: int  # pixels; frames are image_size x image_size
    patch_size: int  # pixels
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    layer_norm_eps: float
    merge_heads: int  # chunks that the merging metric is the mean of: the LLM's attention heads, not the tower's
    llm_hidden_size: int

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> VisionConfig:
        """Read and check the vision part of ``config.json``.

        Raises:
            CheckpointError: A key is missing, is of the wrong type, or names a variant the tower is not written for.
        """
        top, vision, llm = checkpoint.config, checkpoint.vision_config, checkpoint.llm_config
        _require(top, _TOP_FIXED, "")
        _require(vision, _VISION_FIXED, "vision_config.")
        config = cls(
            image_size=_size(vision, "image_size", "vision_config."),
            patch_size=_size(vision, "patch_size", "vision_config."),
            hidden_size=_size(vision, "hidden_size", "vision_config."),
            num_layers=_size(vision, "num_hidden_layers", "vision_config."),
            num_heads=_size(vision, "num_attention_heads", "vision_config."),
            mlp_size=_size(vision, "intermediate_size", "vision_config."),
            layer_norm_eps=_positive(vision, "layer_norm_eps", "vision_config."),
            merge_heads=_size(llm, "num_attention_heads", "llm_config."),
            llm_hidden_size=_size(llm, "hidden_size", "llm_config."),
        )
        _require(top, {"force_image_size": config.image_size}, "")
        return config

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise CheckpointError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_heads} attention heads")
        if self.image_size % (self.patch_size * SHUFFLE):
            raise CheckpointError(f"image_size {self.image_size} is not a multiple of {SHUFFLE} x patch_size {self.patch_size}")
        if self.shuffled_size % self.merge_heads:
            raise CheckpointError(f"{self.shuffled_size} channels are not a multiple of the LLM's {self.merge_heads} heads")
        # Every merge round halves the tokens exactly; another count would need the original's sort of the best pairs.
        merged, odd = self.tokens_per_frame, 0
        while merged > TOKENS_PER_FRAME:
            merged, odd = merged // 2, odd + merged % 2
        if merged != TOKENS_PER_FRAME or odd:
            raise CheckpointError(f"{self.tokens_per_frame} tokens a frame cannot be halved to {TOKENS_PER_FRAME}")

    @property
    def patches_per_side(self) -> int:
        """Patches in a row of a frame."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of a frame; the tower adds one class token."""
        return self.patches_per_side**2

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a frame between pixel shuffle and merging."""
        return self.patches // SHUFFLE**2

    @property
    def shuffled_size(self) -> int:
        """Channels of a token after pixel shuffle."""
        return self.hidden_size * SHUFFLE**2


def _get(section: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in section:
        raise CheckpointError(f"config.json lacks {where}{key}: it cannot be guessed, models of the family differ in it")
    return section[key]


def _size(section: Mapping[str, Any], key: str, where: str) -> int:
    value = _get(section, key, where)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"config.json: {where}{key} must be a positive integer, got {value!r}")
    return value


def _positive(section: Mapping[str, Any], key: str, where: str) -> float:
    value = _get(section, key, where)
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise CheckpointError(f"config.json: {where}{key} must be a positive number, got {value!r}")
    return float(value)


def _require(section: Mapping[str, Any], fixed: Mapping[str, object], where: str) -> None:
    for key, wanted in fixed.items():
        value = _get(section, key, where)
        if value != wanted:
            raise CheckpointError(f"config.json: {where}{key} is {value!r}; this vision tower is written for {wanted!r} only")
