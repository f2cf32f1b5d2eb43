"""InternLM2 for training, with the checkpoint's own tensor names.

Plain teacher forcing over packed sequences: who may look at whom is the caller's mask. Serving uses the project's engine.
Letters in shape comments: B sequences, S tokens, C hidden size, H query heads, K key and value heads, D = C / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from build_scripts.checkpoint_sizes import Dimensions

ROPE_THETA = 1_000_000.0  # as model_config writes it
RMS_EPS = 1e-5


class LanguageModel(nn.Module):
    """Embeddings in, hidden states out; ``output`` turns those into logits."""

    def __init__(self, d: Dimensions) -> None:
        super().__init__()
        self.model = _Body(d)
        self.output = nn.Linear(d.llm_hidden, d.vocab_size, bias=False)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Run the layers.

        Args:
            x: Embeddings [B, S, C].
            positions: int64 [B, S].
            mask: Added to the attention scores: [B, 1, S, S], 0 or minus infinity.

        Returns:
            [B, S, C], normalised.
        """
        cos, sin = _rotations(positions, self.model.head_dim)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        normed: Tensor = self.model.norm(x)
        return normed


class _Body(nn.Module):
    def __init__(self, d: Dimensions) -> None:
        super().__init__()
        self.head_dim = d.llm_hidden // d.llm_heads
        self.tok_embeddings = nn.Embedding(d.vocab_size, d.llm_hidden)
        self.layers = nn.ModuleList(_Layer(d) for _ in range(d.llm_layers))
        self.norm = nn.RMSNorm(d.llm_hidden, RMS_EPS)


class _Layer(nn.Module):
    def __init__(self, d: Dimensions) -> None:
        super().__init__()
        self.attention = _Attention(d)
        self.feed_forward = _FeedForward(d)
        self.attention_norm = nn.RMSNorm(d.llm_hidden, RMS_EPS)
        self.ffn_norm = nn.RMSNorm(d.llm_hidden, RMS_EPS)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, mask)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class _Attention(nn.Module):
    def __init__(self, d: Dimensions) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = d.llm_kv_heads, d.llm_hidden // d.llm_heads
        self.groups = d.llm_heads // d.llm_kv_heads
        self.wqkv = nn.Linear(d.llm_hidden, (d.llm_heads + 2 * d.llm_kv_heads) * self.head_dim, bias=False)
        self.wo = nn.Linear(d.llm_hidden, d.llm_hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        # The rows of wqkv stand together by key and value head: its queries, its key, its value.
        qkv = self.wqkv(x).unflatten(2, (self.kv_heads, self.groups + 2, self.head_dim))  # [B, S, K, groups + 2, D]
        q = qkv[:, :, :, : self.groups].flatten(2, 3).transpose(1, 2)  # [B, H, S, D]
        k, v = (qkv[:, :, :, self.groups + i].transpose(1, 2) for i in range(2))  # [B, K, S, D]
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (t.repeat_interleave(self.groups, dim=1) for t in (k, v))
        x = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask.to(v.dtype))
        out: Tensor = self.wo(x.transpose(1, 2).flatten(2))
        return out


class _FeedForward(nn.Module):
    def __init__(self, d: Dimensions) -> None:
        super().__init__()
        self.w1 = nn.Linear(d.llm_hidden, d.llm_mlp, bias=False)
        self.w3 = nn.Linear(d.llm_hidden, d.llm_mlp, bias=False)
        self.w2 = nn.Linear(d.llm_mlp, d.llm_hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


def _rotations(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, float32 [B, 1, S, D]."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None].float() * ROPE_THETA**-exponents  # [B, 1, S, D / 2]
    angles = torch.cat([angles, angles], dim=3)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=3)
    return x * cos + torch.cat([-second, first], dim=3) * sin
