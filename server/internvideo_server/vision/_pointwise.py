"""What stands between the products of the fast path: each function is about one pass over memory when compiled.

Arithmetic is float32 inside, as torch's own kernels have it.
Letters in shape comments: B frames, P patches of a frame, S = 1 + P, C hidden size, M size of the MLP, R = B * S rows of
the residual stream.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from internvideo_server.vision._folded import LEVEL_OFFSET, FoldedNorm
from internvideo_server.vision.tower import pixel_shuffle

FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
_GELU_LEAST = 0.17  # below its negative GELU never goes: the minimum is -0.16997
_GELU_EDGE = 5.0  # where the normal distribution is 0 or 1 for every purpose here


def _gelu_series() -> list[float]:
    """Coefficients of (Phi(x) - 1/2) / x in powers of 2 (x / edge)^2 - 1, highest first; Phi is the normal distribution.

    With them GELU is within 3e-6 of the one by erf, a thousandth of bfloat16's own rounding, at a third of the
    instructions: with a full erf this pass takes longer than reading and writing its data.
    """
    nodes = np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    x = _GELU_EDGE * np.sqrt((nodes + 1) / 2)
    values = np.array([0.5 * math.erf(each / math.sqrt(2)) / each for each in x])
    fit = np.polynomial.chebyshev.cheb2poly(np.polynomial.chebyshev.chebfit(nodes, values, 12))  # type: ignore[no-untyped-call]
    return [float(factor) for factor in reversed(fit)]


_GELU_SERIES = _gelu_series()


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


def normalise(x: Tensor, norm: FoldedNorm) -> Tensor:
    """LayerNorm of the stream."""
    return _layer_norm(x, norm).to(x.dtype)


def join_patches(x: Tensor, pending: Tensor | None, shift: Tensor, per_side: int) -> Tensor:
    """The stream and what is still to be added to it, to pixel-shuffled tokens [B, P / 4, 4 * C]."""
    tokens = x + shift if pending is None else x + pending + shift
    return pixel_shuffle(tokens.to(x.dtype).view(-1, 1 + per_side * per_side, x.shape[1]), per_side)


def add_normalise_fp8(x: Tensor, pending: Tensor | None, norm: FoldedNorm) -> tuple[Tensor, Tensor]:
    """Add ``pending`` to the stream in place, and give its LayerNorm as FP8 with a scale for each row."""
    if pending is not None:
        x.add_(pending)
    return to_fp8(_layer_norm(x, norm))


def gelu_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU of [R, M] as FP8 with a scale for each row."""
    x = x.to(torch.float32)
    # GELU grows with x where it is large: the largest x gives its scale without a pass of its own.
    scale = _gelu(x.amax(1, keepdim=True)).clamp(min=_GELU_LEAST) / _FP8_MAX
    return (_gelu(x) / scale).to(FP8), scale


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as FP8 e4m3 and their scales, float32 [R, 1]."""
    x = x.to(torch.float32)
    scale = x.abs().amax(1, keepdim=True).clamp(min=1e-12) / _FP8_MAX
    return (x / scale).to(FP8), scale


def _layer_norm(x: Tensor, norm: FoldedNorm) -> Tensor:
    return F.layer_norm(x + norm.shift, norm.shift.shape, norm.weight, norm.bias, norm.eps)


def _gelu(x: Tensor) -> Tensor:
    if not torch.compiler.is_compiling():
        return F.gelu(x)
    inside = x.clamp(-_GELU_EDGE, _GELU_EDGE)
    return x * (0.5 + inside * _series(inside))


def _series(x: Tensor) -> Tensor:
    t = x * x * (2 / _GELU_EDGE**2) - 1
    total = torch.full_like(t, _GELU_SERIES[0])
    for factor in _GELU_SERIES[1:]:
        total = total * t + factor
    return total
