"""Weights of the vision path, read from a checkpoint's safetensors straight to the target device and dtype."""

from __future__ import annotations

import torch
from torch import nn

from internvideo_server.checkpoint import Checkpoint, CheckpointError

from ._config import VisionConfig
from .tower import VisionTower, make_projector


def load_vision(
    checkpoint: Checkpoint, config: VisionConfig, device: torch.device, dtype: torch.dtype
) -> tuple[VisionTower, nn.Sequential]:
    """Build the tower and the projector with the checkpoint's weights.

    Raises:
        CheckpointError: Tensors are missing, are unknown or have other shapes than config.json says.
    """
    with torch.device("meta"):
        tower, projector = VisionTower(config), make_projector(config)
    _load(tower, checkpoint, "vision_model.", device, dtype)
    _load(projector, checkpoint, "mlp1.", device, dtype)
    return tower, projector


def _load(module: nn.Module, checkpoint: Checkpoint, prefix: str, device: torch.device, dtype: torch.dtype) -> None:
    # copy=True: without it a tensor of the right dtype would stay a view of the mapped file, and change with it.
    state = {name.removeprefix(prefix): tensor.to(device, dtype, copy=True) for name, tensor in checkpoint.tensors(prefix)}
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:  # torch's words name each missing, unknown or misshaped tensor
        raise CheckpointError(f"the tensors {prefix}* in {checkpoint.path} do not fit its config.json: {error}") from error
    module.requires_grad_(False).eval()
