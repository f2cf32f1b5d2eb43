"""One layer of InternViT on the stream, from folded weights: in half precision, or with the MLP's products in FP8.

Letters in shape comments: see _pointwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from . import _pointwise
from ._fused_weights import FusedLayer


class Passes:
    """What stands between the products: compiled and as Triton's kernels, or by torch's own functions."""

    def __init__(self, *, compiled: bool) -> None:
        def prepare(function: Callable[..., Any]) -> Callable[..., Any]:
            if not compiled:
                return function
            # In this process: a pool of compilers would start by the name of the Python program, which Triton's stub is not.
            return torch.compile(function, fullgraph=True, dynamic=False, options={"compile_threads": 1})

        self.cut_patches = prepare(_pointwise.cut_patches)
        self.place = prepare(_pointwise.place)
        self.add_normalise = prepare(_pointwise.add_normalise)
        self.normalise_fp8 = prepare(_pointwise.normalise_fp8)
        self.join_patches = prepare(_pointwise.join_patches)
        self._kernels: Any = None
        if compiled:
            from . import _kernels  # torch for CPUs alone comes without Triton's language

            self._kernels = _kernels

    def attention(self, qkv: Tensor, frames: int, heads: int) -> Tensor:
        """[R, 3 C] to [R, C]."""
        (rows, width), size = qkv.shape, qkv.shape[1] // (3 * heads)
        if self._kernels and self._kernels.attends(rows // frames, size):
            own: Tensor = self._kernels.attention(qkv, frames, heads)
            return own
        q, k, v = qkv.view(frames, -1, 3, heads, size).permute(2, 0, 3, 1, 4)  # each [B, H, S, D]
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, width // 3)

    def gelu_fp8(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """GELU of [R, M] as FP8 with a scale for each row."""
        found: tuple[Tensor, Tensor] = (self._kernels or _pointwise).gelu_fp8(x)
        return found


class Layer:
    """The stream is changed in place."""

    def __init__(self, fused: FusedLayer, heads: int, dtype: torch.dtype, passes: Passes, *, fp8: bool) -> None:
        self._heads, self._pass, self._norm = heads, passes, fused.norm1
        self._qkv, self._qkv_bias = fused.qkv.to(dtype).t(), fused.qkv_bias.to(dtype)
        self._proj = fused.proj.to(dtype).t()
        self._mlp = (_Fp8Mlp if fp8 else _HalfMlp)(fused, dtype, passes)

    def __call__(self, x: Tensor, pending: Tensor | None, frames: int) -> Tensor | None:
        """Change the stream by what was pending; return what is to be added to it next."""
        qkv = torch.addmm(self._qkv_bias, self._pass.add_normalise(x, pending, self._norm), self._qkv)
        x.addmm_(self._pass.attention(qkv, frames, self._heads), self._proj)
        return self._mlp(x)


class _HalfMlp:
    """Products in the tower's dtype; nothing is left pending."""

    def __init__(self, fused: FusedLayer, dtype: torch.dtype, passes: Passes) -> None:
        self._pass, self._norm = passes, fused.norm2
        self._fc1, self._fc1_bias = fused.fc1.to(dtype).t(), fused.fc1_bias.to(dtype)
        self._fc2 = fused.fc2.to(dtype).t()

    def __call__(self, x: Tensor) -> None:
        # GELU inside the product: by tanh on CUDA, where the model's is by erf. A pass of its own reads and writes it all again.
        normal = self._pass.add_normalise(x, None, self._norm)
        x.addmm_(torch._addmm_activation(self._fc1_bias, normal, self._fc1, use_gelu=True), self._fc2)


class _Fp8Mlp:
    """Weights and activations in FP8 e4m3, with a scale for each row of both.

    The MLP alone: it has two thirds of the layer's products, and FP8 in qkv and proj would cost most of the accuracy.
    """

    def __init__(self, fused: FusedLayer, dtype: torch.dtype, passes: Passes) -> None:
        self._pass, self._norm = passes, fused.norm2
        self._fc1 = _Fp8Product(fused.fc1, fused.fc1_bias, dtype)
        self._fc2 = _Fp8Product(fused.fc2, None, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """What is to be added to the stream."""
        return self._fc2(*self._pass.gelu_fp8(self._fc1(*self._pass.normalise_fp8(x, self._norm))))


class _Fp8Product:
    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        quantised, scale = _pointwise.to_fp8(weight)
        self._weight, self._scale = quantised.t(), scale.t().contiguous()  # [in, out], [1, out]
        self._bias = None if bias is None else bias.to(dtype)
        self._dtype = dtype

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor:
        """[R, in] in FP8, and float32 [R, 1], to [R, out]."""
        return torch._scaled_mm(x, self._weight, scale, self._scale, bias=self._bias, out_dtype=self._dtype, use_fast_accum=True)
