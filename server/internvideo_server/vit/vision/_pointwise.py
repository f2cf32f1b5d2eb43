"""What stands between the products of the fast path: each function is about one pass over memory when compiled.

Arithmetic is float32 inside, as torch's own kernels have it.
Letters in shape comments: B frames, P patches of a frame, S = 1 + P, C hidden size, M size of the MLP, R = B * S rows of
the residual stream.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ._fused_weights import LEVEL_OFFSET, FusedNorm
from .tower import pixel_shuffle

FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0


def cut_patches(frames: Tensor, patch: int, width: int, dtype: torch.dtype) -> Tensor:
    """uint8 [B, 3, height, width] to the levels of each patch in ``dtype``, [B * P, width], zeros at the end of a row."""
    count, colours, rows, columns = frames.shape
    x = frames.view(count, colours, rows // patch, patch, columns // patch, patch).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(-1, colours * patch * patch)
    return F.pad(x.to(dtype) + LEVEL_OFFSET, (0, width - x.shape[1]))


def place(embedded: Tensor, offset: Tensor) -> Tensor:
    """Embedded patches [B, P, C] and the float32 offset [S, C] to the stream [R, C], class tokens included."""
    first = offset[:1].expand(embedded.shape[0], 1, -1)
    return torch.cat([first, embedded + offset[1:]], 1).flatten(0, 1).to(embedded.dtype)


def add_normalise(x: Tensor, pending: Tensor | None, norm: FusedNorm) -> Tensor:
    """Add ``pending`` to the stream in place, and give its LayerNorm."""
    if pending is not None:
        x.add_(pending)
    return _layer_norm(x, norm).to(x.dtype)


def normalise_fp8(x: Tensor, norm: FusedNorm) -> tuple[Tensor, Tensor]:
    """LayerNorm of the stream as FP8 with a scale for each row."""
    return to_fp8(_layer_norm(x, norm))


def join_patches(x: Tensor, pending: Tensor | None, shift: Tensor, per_side: int) -> Tensor:
    """The stream and what is still to be added to it, to pixel-shuffled tokens [B, P / 4, 4 * C]."""
    tokens = x + shift if pending is None else x + pending + shift
    return pixel_shuffle(tokens.to(x.dtype).view(-1, 1 + per_side * per_side, x.shape[1]), per_side)


def gelu_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU (by tanh, as inside the half-precision product) of [R, M] as FP8 with a scale for each row."""
    return to_fp8(F.gelu(x.to(torch.float32), approximate="tanh"))


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as FP8 e4m3 and their scales, float32 [R, 1]."""
    x = x.to(torch.float32)
    scale = x.abs().amax(1, keepdim=True).clamp(min=1e-12) / _FP8_MAX
    return (x / scale).to(FP8), scale


def _layer_norm(x: Tensor, norm: FusedNorm) -> Tensor:
    return F.layer_norm(x + norm.shift, norm.shift.shape, norm.weight, norm.bias, norm.eps)
