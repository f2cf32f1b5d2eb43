"""InternViT-300M and what stands around it: normalising, pixel shuffle, projector.

Module and parameter names are the checkpoint's own, so weights load strictly and without a renaming step.
Letters in shape comments: B frames, S = 1 + patches, C hidden size, H heads, D = C / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from internvideo_server.deadline import Deadline

from ._config import SHUFFLE, VisionConfig

# ImageNet statistics of RGB, as the original's transforms have them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

RUNNING = "running the vision tower"  # what a deadline says that ends it


def normalise(frames: Tensor) -> Tensor:
    """Scale frames as torchvision's ToTensor and Normalize do, bit for bit.

    Args:
        frames: uint8 RGB [B, 3, height, width].

    Returns:
        float32 of the same shape: ``(x / 255 - mean) / std``.
    """
    mean = torch.tensor(MEAN, device=frames.device).view(3, 1, 1)
    std = torch.tensor(STD, device=frames.device).view(3, 1, 1)
    return frames.to(torch.float32).div_(255).sub_(mean).div_(std)


class VisionTower(nn.Module):
    """InternViT: pixels to one token per patch and a class token, without a final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)

    def forward(self, pixels: Tensor, deadline: Deadline | None = None) -> Tensor:
        """Run the tower.

        Args:
            pixels: Normalised RGB in the tower's dtype [B, 3, image_size, image_size].
            deadline: Checked before every layer.

        Returns:
            [B, 1 + patches, C], the class token first.
        """
        x: Tensor = self.encoder(self.embeddings(pixels), deadline)
        return x


class _Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + config.patches, config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        # A convolution whose stride is its kernel is a product over patches. As such it stays out of cuDNN, which
        # would round float32 to TF32 by default.
        conv = self.patch_embedding
        size = conv.kernel_size[0]
        frames, colours, height, width = pixels.shape
        patches = pixels.reshape(frames, colours, height // size, size, width // size, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, S - 1, 3 * size * size]
        x = F.linear(patches, conv.weight.flatten(1), conv.bias)  # [B, S - 1, C]
        x = torch.cat([self.class_embedding.expand(x.shape[0], -1, -1), x], dim=1)  # [B, S, C]
        return x + self.position_embedding


class _Encoder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor, deadline: Deadline | None) -> Tensor:
        for layer in self.layers:
            if deadline is not None:
                deadline.check(RUNNING)
            x = layer(x)
        return x


class _Layer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(size, eps)
        self.attn = _Attention(config)
        self.ls1 = nn.Parameter(torch.empty(size))
        self.norm2 = nn.LayerNorm(size, eps)
        self.mlp = _Mlp(config)
        self.ls2 = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addcmul(x, self.attn(self.norm1(x)), self.ls1)  # x + attention * ls1
        return torch.addcmul(x, self.mlp(self.norm2(x)), self.ls2)


class _Attention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        qkv: Tensor = self.qkv(x)  # [B, S, 3 C]
        q, k, v = qkv.view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each [B, H, S, D]
        x = F.scaled_dot_product_attention(q, k, v)  # [B, H, S, D]
        projected: Tensor = self.proj(x.transpose(1, 2).flatten(2))  # [B, S, C]
        return projected


class _Mlp(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_size)
        self.fc2 = nn.Linear(config.mlp_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))  # erf, not tanh
        return out


def pixel_shuffle(tokens: Tensor, per_side: int) -> Tensor:
    """Join each 2 x 2 patches into one token of four times the channels ("ps_version" v2).

    Args:
        tokens: The tower's output [B, 1 + per_side * per_side, C]; the class token is dropped.
        per_side: Patches in a row of a frame.

    Returns:
        [B, (per_side / 2) ** 2, 4 * C], row by row; channels are (row parity, column parity, C).
    """
    return shuffle_patches(tokens[:, 1:], per_side)


def shuffle_patches(patches: Tensor, per_side: int) -> Tensor:
    """The same without a class token: [B, per_side * per_side, C]."""
    half, channels = per_side // SHUFFLE, patches.shape[2]
    x = patches.reshape(-1, half, SHUFFLE, half, SHUFFLE, channels)  # [B, row, parity, column, parity, C]
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, half * half, SHUFFLE * SHUFFLE * channels)


def make_projector(config: VisionConfig) -> nn.Sequential:
    """The checkpoint's ``mlp1``: merged tokens [..., 4 * C] to the LLM's hidden size."""
    return nn.Sequential(
        nn.LayerNorm(config.shuffled_size),  # eps 1e-5, not the tower's
        nn.Linear(config.shuffled_size, config.llm_hidden_size),
        nn.GELU(),
        nn.Linear(config.llm_hidden_size, config.llm_hidden_size),
    )
