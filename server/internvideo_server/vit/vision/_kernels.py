"""Kernels in Triton's language, for CUDA: attention among a frame's tokens, and GELU with FP8 rows.

Where Triton (the language; torch brings it) or a C compiler is missing, torch's own functions stand in: see ``Passes``.
Letters in shape comments: B frames, S = 1 + patches, H heads, D size of a head, R = B * S, M size of the MLP.
"""

# ruff: noqa: N803
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# (Triton takes no annotations but its own.)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634
# The fastest of seven on an H200 at 16 frames: docs/performance.md.
_QUERIES = 64  # of a program
_KEYS = 64  # of a step
_WARPS, _STAGES = 4, 3
_HEAD_SIZES = (16, 32, 64, 128)


def attends(tokens: int, head_size: int) -> bool:
    """Whether :func:`attention` takes frames of so many tokens, the class token included."""
    return tokens > 1 and (tokens - 1) % max(_QUERIES, _KEYS) == 0 and head_size in _HEAD_SIZES


def attention(qkv: Tensor, frames: int, heads: int) -> Tensor:
    """Attention of each frame's tokens among themselves.

    Kernels work in tiles, and 1,025 tokens are a tile more than 1,024, of which one row and one column count. So the class token
    is taken apart: its key and value are where each running softmax *starts*, and the loop covers the patches' keys exactly; its
    query has programs of its own in the same grid, which begin first, as they take the longest.

    Args:
        qkv: Half precision [R, 3 * H * D], contiguous, the class token first; :func:`attends` holds for the sizes.
        frames: B.
        heads: H.

    Returns:
        [R, H * D].
    """
    rows, width = qkv.shape
    tokens, size = rows // frames, width // (3 * heads)
    out = torch.empty(rows, heads * size, dtype=qkv.dtype, device=qkv.device)
    tiles = (tokens - 1) // _QUERIES
    launch = _attention[(frames * heads * (1 + tiles),)]
    scale = size**-0.5 * _LOG2_E  # the softmax is of base 2
    launch(qkv, out, scale, frames * heads, tokens, heads, size, _QUERIES, _KEYS, _STAGES, num_warps=_WARPS)
    return out


def gelu_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU (by tanh, as inside the half-precision product) of [R, M] as FP8, with a float32 scale for each row [R, 1]."""
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    _gelu_fp8[(rows,)](x, out, scale, width, triton.next_power_of_2(width), num_warps=4)
    return out, scale


@triton.jit
def _attention(
    qkv,
    out,
    scale,
    pairs,  # of a frame and a head
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):
    program = tl.program_id(0)
    if program < pairs:
        _class_token(qkv, out, scale, program, TOKENS, HEADS, SIZE, KEYS, STAGES)
    else:
        tiles: tl.constexpr = (TOKENS - 1) // QUERIES
        at = program - pairs
        _patches(qkv, out, scale, at // tiles, at % tiles, TOKENS, HEADS, SIZE, QUERIES, KEYS, STAGES)


@triton.jit
def _class_token(
    qkv,
    out,
    scale,
    pair,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The class token's query: a row, so sums instead of products of tiles."""
    row: tl.constexpr = 3 * HEADS * SIZE
    first = pair.to(tl.int64) // HEADS * TOKENS
    base = qkv + first * row + pair % HEADS * SIZE
    d = tl.arange(0, SIZE)
    q = tl.load(base + d).to(tl.float32) * scale
    highest = tl.sum(q * tl.load(base + HEADS * SIZE + d).to(tl.float32), 0)
    total = 1.0
    values = tl.load(base + 2 * HEADS * SIZE + d).to(tl.float32)
    at = base + HEADS * SIZE + (1 + tl.arange(0, KEYS))[:, None] * row + d[None, :]
    for _ in tl.range(0, TOKENS - 1, KEYS, num_stages=STAGES):
        k = tl.load(at).to(tl.float32)
        v = tl.load(at + HEADS * SIZE).to(tl.float32)
        scores = tl.sum(k * q[None, :], 1)
        new = tl.maximum(highest, tl.max(scores, 0))
        p = tl.math.exp2(scores - new)
        shrink = tl.math.exp2(highest - new)
        total = total * shrink + tl.sum(p, 0)
        values = values * shrink + tl.sum(p[:, None] * v, 0)
        highest = new
        at += KEYS * row
    tl.store(out + first * HEADS * SIZE + pair % HEADS * SIZE + d, (values / total).to(out.dtype.element_ty))


@triton.jit
def _patches(
    qkv,
    out,
    scale,
    pair,
    tile,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A tile of patches' queries."""
    row: tl.constexpr = 3 * HEADS * SIZE
    first = pair.to(tl.int64) // HEADS * TOKENS
    base = qkv + first * row + pair % HEADS * SIZE
    d = tl.arange(0, SIZE)
    query = 1 + tile * QUERIES + tl.arange(0, QUERIES)
    q = tl.load(base + query[:, None] * row + d[None, :])
    k0 = tl.load(base + HEADS * SIZE + d).to(tl.float32)
    v0 = tl.load(base + 2 * HEADS * SIZE + d).to(tl.float32)
    highest = tl.sum(q.to(tl.float32) * k0[None, :], 1) * scale
    total = tl.full([QUERIES], 1.0, tl.float32)
    values = tl.zeros([QUERIES, SIZE], tl.float32) + v0[None, :]
    keys = 1 + tl.arange(0, KEYS)
    at_k = base + HEADS * SIZE + keys[None, :] * row + d[:, None]
    at_v = base + 2 * HEADS * SIZE + keys[:, None] * row + d[None, :]
    for _ in tl.range(0, TOKENS - 1, KEYS, num_stages=STAGES):
        scores = tl.dot(q, tl.load(at_k))
        new = tl.maximum(highest, tl.max(scores, 1) * scale)
        p = tl.math.exp2(scores * scale - new[:, None])
        shrink = tl.math.exp2(highest - new)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(at_v)
        values = tl.dot(p.to(v.dtype), v, values * shrink[:, None])
        highest = new
        at_k += KEYS * row
        at_v += KEYS * row
    to = out + (first + query[:, None]) * HEADS * SIZE + pair % HEADS * SIZE + d[None, :]
    tl.store(to, (values / total[:, None]).to(out.dtype.element_ty))


@triton.jit
def _gelu_fp8(x, out, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A row a program: read once, written once."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + row * WIDTH + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    # x * (1 + tanh(u)) / 2 with u = sqrt(2 / pi) * (x + 0.044715 x^3) is x / (1 + 2^(-2 u log2 e)).
    exponent = value * (-2.302208198 - 0.1029432397 * value * value)
    y = tl.fdiv(value, 1.0 + tl.math.exp2(exponent))
    scale = tl.maximum(tl.max(tl.abs(y), 0), 1e-12) / 448.0
    tl.store(out + row * WIDTH + at, (y * (1.0 / scale)).to(tl.float8e4nv), mask=at < WIDTH)
    tl.store(scales + row, scale)
