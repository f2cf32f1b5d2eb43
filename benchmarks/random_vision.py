"""The vision path's modules at the real size with random weights, made in memory, and frames for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from build_scripts.checkpoint_sizes import DIMENSIONS, Size, tensor_specs
from build_scripts.demo_model.train.network import vision_config
from internvideo_server.vit.vision import VisionConfig
from internvideo_server.vit.vision.tower import VisionTower, make_projector


def random_parts(device: str, dtype: torch.dtype, seed: int = 0) -> tuple[VisionConfig, VisionTower, nn.Sequential]:
    """Spread as build_scripts/make_checkpoint.py does; drawn in float32, so models of all dtypes are the same one."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {
        spec.name: torch.empty(spec.shape, device=device).normal_(spec.mean, spec.std, generator=generator).to(dtype)
        for spec in tensor_specs(DIMENSIONS[Size.FULL])
        if not spec.name.startswith("language_model.")
    }
    config = vision_config(DIMENSIONS[Size.FULL])
    with torch.device("meta"):
        tower, projector = VisionTower(config), make_projector(config)
    for module, prefix in ((tower, "vision_model."), (projector, "mlp1.")):
        state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(state, strict=True, assign=True)
        module.requires_grad_(False)
    return config, tower, projector


def moving_frames(count: int, seed: int = 0) -> Tensor:
    """uint8 [count, 3, 448, 448]: coarse squares that change slowly from frame to frame, with fine noise."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, 200, (2, 3, 32, 32), generator=generator).float()
    share = torch.linspace(0, 1, max(count, 2))[:count].view(-1, 1, 1, 1)
    coarse = (ends[0] * (1 - share) + ends[1] * share).repeat_interleave(14, 2).repeat_interleave(14, 3)
    return (coarse + torch.randint(0, 56, coarse.shape, generator=generator)).to(torch.uint8)
