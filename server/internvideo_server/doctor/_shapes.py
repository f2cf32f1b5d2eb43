"""The tensors that a checkpoint must have, computed from its config.json and compared with the shards' headers."""

from __future__ import annotations

import math

from safetensors import safe_open

from internvideo_server.checkpoint import Checkpoint, CheckpointError
from internvideo_server.checkpoint_layout import Shape, tensor_shapes


def check_shapes(checkpoint: Checkpoint) -> int:
    """Compare every tensor's shape with what config.json says. Reads headers only.

    Returns:
        The number of parameters.

    Raises:
        CheckpointError: A tensor is missing, unknown or misshapen, or config.json lacks a size.
    """
    expected = tensor_shapes(checkpoint.config)
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
