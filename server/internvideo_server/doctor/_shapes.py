"""The tensors that a checkpoint must have, computed from its config.json and compared with the shards' headers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from safetensors import safe_open

from ..checkpoint import Checkpoint, CheckpointError

Shape = tuple[int, ...]


def check_shapes(checkpoint: Checkpoint) -> int:
    """Compare every tensor's shape with what config.json says. Reads headers only.

    Returns:
        The number of parameters.

    Raises:
        CheckpointError: A tensor is missing, unknown or misshapen, or config.json lacks a size.
    """
    expected = expected_shapes(checkpoint)
    stored = stored_shapes(checkpoint)
    if missing := sorted(expected.keys() - stored.keys()):
        raise CheckpointError(f"{checkpoint.path} has no tensor {missing[0]} ({len(missing)} missing)")
    if unknown := sorted(stored.keys() - expected.keys()):
        raise CheckpointError(f"{checkpoint.path} has a tensor that config.json does not explain: {unknown[0]}")
    wrong = [name for name, shape in expected.items() if stored[name] != shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{checkpoint.tensor_files[name]}: {name} is {list(stored[name])}, config.json makes it {list(expected[name])} "
            f"({len(wrong)} tensors are misshapen)"
        )
    return sum(math.prod(shape) for shape in stored.values())


def stored_shapes(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Name -> shape of the tensors that the index lists."""
    shapes: dict[str, Shape] = {}
    for file in sorted(set(checkpoint.tensor_files.values())):
        with safe_open(file, framework="np") as shard:
            for name in shard.keys():
                if checkpoint.tensor_files.get(name) == file:
                    shapes[name] = tuple(shard.get_slice(name).get_shape())
    return shapes


def expected_shapes(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Name -> shape by config.json.

    Raises:
        CheckpointError: A size is missing or is no positive number.
    """
    vision = {key: _positive(checkpoint.vision_config, key, "vision_config") for key in _VISION_SIZES}
    llm = {key: _positive(checkpoint.llm_config, key, "llm_config") for key in _LLM_SIZES}
    return dict([*_vision(vision), *_llm(llm), *_projector(vision["hidden_size"], llm["hidden_size"])])


_VISION_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "patch_size", "image_size", "num_channels")
_LLM_SIZES = (
    *("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size"),
)


def _vision(c: dict[str, int]) -> Iterator[tuple[str, Shape]]:
    h, mlp, patch = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    embeddings = "vision_model.embeddings"
    yield f"{embeddings}.class_embedding", (1, 1, h)
    yield f"{embeddings}.position_embedding", (1, 1 + (c["image_size"] // patch) ** 2, h)
    yield f"{embeddings}.patch_embedding.weight", (h, c["num_channels"], patch, patch)
    yield f"{embeddings}.patch_embedding.bias", (h,)
    for layer in range(c["num_hidden_layers"]):
        prefix = f"vision_model.encoder.layers.{layer}"
        for name in ("ls1", "ls2", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            yield f"{prefix}.{name}", (h,)
        yield from _linear(f"{prefix}.attn.qkv", 3 * h, h)
        yield from _linear(f"{prefix}.attn.proj", h, h)
        yield from _linear(f"{prefix}.mlp.fc1", mlp, h)
        yield from _linear(f"{prefix}.mlp.fc2", h, mlp)


def _llm(c: dict[str, int]) -> Iterator[tuple[str, Shape]]:
    h, mlp, model = c["hidden_size"], c["intermediate_size"], "language_model.model"
    head_dim = h // c["num_attention_heads"]
    yield f"{model}.tok_embeddings.weight", (c["vocab_size"], h)
    yield f"{model}.norm.weight", (h,)
    yield "language_model.output.weight", (c["vocab_size"], h)
    for layer in range(c["num_hidden_layers"]):
        prefix = f"{model}.layers.{layer}"
        yield f"{prefix}.attention.wqkv.weight", (h + 2 * c["num_key_value_heads"] * head_dim, h)
        yield f"{prefix}.attention.wo.weight", (h, h)
        yield f"{prefix}.feed_forward.w1.weight", (mlp, h)
        yield f"{prefix}.feed_forward.w2.weight", (h, mlp)
        yield f"{prefix}.feed_forward.w3.weight", (mlp, h)
        yield f"{prefix}.attention_norm.weight", (h,)
        yield f"{prefix}.ffn_norm.weight", (h,)


def _projector(vision_hidden: int, llm_hidden: int) -> Iterator[tuple[str, Shape]]:
    joined = 4 * vision_hidden  # pixel shuffle joins 2 x 2 patches
    yield "mlp1.0.weight", (joined,)
    yield "mlp1.0.bias", (joined,)
    yield from _linear("mlp1.1", llm_hidden, joined)
    yield from _linear("mlp1.3", llm_hidden, llm_hidden)


def _linear(prefix: str, rows: int, columns: int) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.weight", (rows, columns)
    yield f"{prefix}.bias", (rows,)


def _positive(section: dict[str, Any], key: str, name: str) -> int:
    value = section.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"config.json: {name}.{key} must be a positive number, not {value!r}")
    return value
