"""One layer of InternViT on the stream, from folded weights: in half precision, or with products in FP8.

Letters in shape comments: see _pointwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from internvideo_server.vision import _pointwise
from internvideo_server.vision._folded import FoldedLayer


class Passes:
    """The functions of ``_pointwise``, compiled or as they are."""

    def __init__(self, *, compiled: bool) -> None:
        def prepare(function: Callable[..., Any]) -> Callable[..., Any]:
            if not compiled:
                return function
            # In this process: a pool of compilers would start by the name of the Python program, which Triton's stub is not.
            return torch.compile(function, fullgraph=True, dynamic=False, options={"compile_threads": 1})

        self.cut_patches = prepare(_pointwise.cut_patches)
        self.place = prepare(_pointwise.place)
        self.normalise = prepare(_pointwise.normalise)
        self.join_patches = prepare(_pointwise.join_patches)
        self.add_normalise_fp8 = prepare(_pointwise.add_normalise_fp8)
        self.gelu_fp8 = prepare(_pointwise.gelu_fp8)
        self.to_fp8 = prepare(_pointwise.to_fp8)


class HalfLayer:
    """Products in the tower's dtype; the stream is changed in place."""

    def __init__(self, folded: FoldedLayer, heads: int, dtype: torch.dtype, passes: Passes) -> None:
        self._heads, self._pass = heads, passes
        self._norm1, self._norm2 = folded.norm1, folded.norm2
        self._qkv, self._qkv_bias = folded.qkv.to(dtype).t(), folded.qkv_bias.to(dtype)
        self._proj = folded.proj.to(dtype).t()
        self._fc1, self._fc1_bias = folded.fc1.to(dtype).t(), folded.fc1_bias.to(dtype)
        self._fc2 = folded.fc2.to(dtype).t()

    def __call__(self, x: Tensor, pending: Tensor | None, frames: int) -> Tensor | None:
        """Change the stream; nothing is left pending."""
        qkv = torch.addmm(self._qkv_bias, self._pass.normalise(x, self._norm1), self._qkv)
        x.addmm_(_attention(qkv, frames, self._heads), self._proj)
        # GELU inside the product: by tanh on CUDA, where the model's is by erf. A pass of its own reads and writes it all again.
        h = torch._addmm_activation(self._fc1_bias, self._pass.normalise(x, self._norm2), self._fc1, use_gelu=True)
        x.addmm_(h, self._fc2)
        return None


class Fp8Layer:
    """Weights and activations of the four products in FP8 e4m3, with a scale for each row of both."""

    def __init__(self, folded: FoldedLayer, heads: int, dtype: torch.dtype, passes: Passes) -> None:
        self._heads, self._pass = heads, passes
        self._norm1, self._norm2 = folded.norm1, folded.norm2
        self._qkv = _Fp8Product(folded.qkv, folded.qkv_bias, dtype)
        self._proj = _Fp8Product(folded.proj, None, dtype)
        self._fc1 = _Fp8Product(folded.fc1, folded.fc1_bias, dtype)
        self._fc2 = _Fp8Product(folded.fc2, None, dtype)

    def __call__(self, x: Tensor, pending: Tensor | None, frames: int) -> Tensor | None:
        """Change the stream by what was pending; return what is to be added to it next."""
        qkv = self._qkv(*self._pass.add_normalise_fp8(x, pending, self._norm1))
        pending = self._proj(*self._pass.to_fp8(_attention(qkv, frames, self._heads)))
        h = self._fc1(*self._pass.add_normalise_fp8(x, pending, self._norm2))
        return self._fc2(*self._pass.gelu_fp8(h))


class _Fp8Product:
    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        quantised, scale = _pointwise.to_fp8(weight)
        self._weight, self._scale = quantised.t(), scale.t().contiguous()  # [in, out], [1, out]
        self._bias = None if bias is None else bias.to(dtype)
        self._dtype = dtype

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor:
        """[R, in] in FP8, and float32 [R, 1], to [R, out]."""
        return torch._scaled_mm(x, self._weight, scale, self._scale, bias=self._bias, out_dtype=self._dtype, use_fast_accum=True)


def _attention(qkv: Tensor, frames: int, heads: int) -> Tensor:
    """[R, 3 C] to [R, C]."""
    q, k, v = qkv.view(frames, -1, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 0, 3, 1, 4)  # each [B, H, S, D]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(qkv.shape[0], -1)
