"""The tensors of a checkpoint, names and shapes, as its config.json makes them; in the original module's order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .checkpoint import CheckpointError

Shape = tuple[int, ...]

_VISION_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "patch_size", "image_size", "num_channels")
_LLM_SIZES = (
    *("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size"),
)


def tensor_shapes(config: dict[str, Any]) -> dict[str, Shape]:
    """Name -> shape.

    Args:
        config: ``config.json``.

    Raises:
        CheckpointError: A size is missing or is not a positive number.
    """
    vision = {key: _positive(config["vision_config"], key, "vision_config") for key in _VISION_SIZES}
    llm = {key: _positive(config["llm_config"], key, "llm_config") for key in _LLM_SIZES}
    return dict([*_vision(vision), *_llm(llm), *_projector(vision["hidden_size"], llm["hidden_size"])])


def _vision(c: dict[str, int]) -> Iterator[tuple[str, Shape]]:
    h, mlp, patch = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    embeddings = "vision_model.embeddings"
    yield f"{embeddings}.class_embedding", (1, 1, h)
    yield f"{embeddings}.position_embedding", (1, 1 + (c["image_size"] // patch) ** 2, h)
    yield f"{embeddings}.patch_embedding.weight", (h, c["num_channels"], patch, patch)
    yield f"{embeddings}.patch_embedding.bias", (h,)
    for layer in range(c["num_hidden_layers"]):
        prefix = f"vision_model.encoder.layers.{layer}"
        yield f"{prefix}.ls1", (h,)
        yield f"{prefix}.ls2", (h,)
        yield from _linear(f"{prefix}.attn.qkv", 3 * h, h)
        yield from _linear(f"{prefix}.attn.proj", h, h)
        yield from _linear(f"{prefix}.mlp.fc1", mlp, h)
        yield from _linear(f"{prefix}.mlp.fc2", h, mlp)
        yield from _affine(f"{prefix}.norm1", h)
        yield from _affine(f"{prefix}.norm2", h)


def _llm(c: dict[str, int]) -> Iterator[tuple[str, Shape]]:
    h, mlp, model = c["hidden_size"], c["intermediate_size"], "language_model.model"
    head_dim = h // c["num_attention_heads"]
    yield f"{model}.tok_embeddings.weight", (c["vocab_size"], h)
    for layer in range(c["num_hidden_layers"]):
        prefix = f"{model}.layers.{layer}"
        yield f"{prefix}.attention.wqkv.weight", (h + 2 * c["num_key_value_heads"] * head_dim, h)
        yield f"{prefix}.attention.wo.weight", (h, h)
        yield f"{prefix}.feed_forward.w1.weight", (mlp, h)
        yield f"{prefix}.feed_forward.w3.weight", (mlp, h)
        yield f"{prefix}.feed_forward.w2.weight", (h, mlp)
        yield f"{prefix}.attention_norm.weight", (h,)
        yield f"{prefix}.ffn_norm.weight", (h,)
    yield f"{model}.norm.weight", (h,)
    yield "language_model.output.weight", (c["vocab_size"], h)


def _projector(vision_hidden: int, llm_hidden: int) -> Iterator[tuple[str, Shape]]:
    joined = 4 * vision_hidden  # pixel shuffle joins 2 x 2 patches
    yield from _affine("mlp1.0", joined)
    yield from _linear("mlp1.1", llm_hidden, joined)
    yield from _linear("mlp1.3", llm_hidden, llm_hidden)


def _linear(prefix: str, rows: int, columns: int) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.weight", (rows, columns)
    yield f"{prefix}.bias", (rows,)


def _affine(prefix: str, size: int) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.weight", (size,)
    yield f"{prefix}.bias", (size,)


def _positive(section: dict[str, Any], key: str, name: str) -> int:
    value = section.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"config.json: {name}.{key} must be a positive number, not {value!r}")
    return value
