"""Causal Q-Former: learnt queries read the vision tokens, each query seeing only those before it.

A BERT encoder (post-norm) over the queries, with cross-attention to the vision tokens in every n-th layer.
Module names follow the released SEED-2 checkpoint, so its tensors load without renaming.

Source: SEED-LLaMA, Ge et al. 2023, arXiv:2310.01218; BLIP-2, Li et al. 2023, arXiv:2301.12597.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.models.config import Geometry

LAYER_NORM_EPS = 1e-12


class _Projections(nn.Module):
    def __init__(self, width: int, key_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width, width)
        self.value = nn.Linear(key_width, width)


class _Residual(nn.Module):
    """`LayerNorm(dense(x) + residual)`."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    """Multi-head attention of queries over `keys`, followed by projection, residual and norm."""

    def __init__(self, width: int, key_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.self = _Projections(width, key_width)
        self.output = _Residual(width, width)

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, count, width = x.shape  # (batch, queries, width)

        def split(t: Tensor) -> Tensor:
            return t.view(batch, t.shape[1], self.heads, width // self.heads).transpose(1, 2)

        q, k, v = split(self.self.query(x)), split(self.self.key(keys)), split(self.self.value(keys))
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(context.transpose(1, 2).reshape(batch, count, width), x)


class _Intermediate(nn.Module):
    def __init__(self, width: int, mlp: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, mlp)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Causal self-attention, cross-attention where `looks` is set, feed-forward."""

    def __init__(self, geometry: Geometry, looks: bool) -> None:
        super().__init__()
        width, heads = geometry.qformer_width, geometry.qformer_heads
        self.attention = Attention(width, width, heads)
        self.crossattention = Attention(width, geometry.vit_width, heads) if looks else None
        self.intermediate_query = _Intermediate(width, geometry.qformer_mlp)
        self.output_query = _Residual(geometry.qformer_mlp, width)

    def forward(self, x: Tensor, vision_tokens: Tensor, mask: Tensor, look_bias: Tensor | None = None) -> Tensor:
        x = self.attention(x, x, mask)
        if self.crossattention is not None:
            x = self.crossattention(x, vision_tokens, look_bias)
        return self.output_query(self.intermediate_query(x), x)


def causal_mask(num_queries: int) -> Tensor:
    """(n, n): 0 where a query may look, -10000 where it may not; added to scores, as the reference does."""
    return (1 - torch.tril(torch.ones(num_queries, num_queries))) * -10000.0


class CausalQFormer(nn.Module):
    """Vision tokens (batch, tokens, vit_width) and queries (1, n, width) -> (batch, n, width)."""

    causal: Tensor

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        layers = [Layer(geometry, i % geometry.cross_attention_every == 0) for i in range(geometry.qformer_depth)]
        norm = nn.LayerNorm(geometry.qformer_width, eps=LAYER_NORM_EPS)
        self.bert = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict({"LayerNorm": norm}),
                "encoder": nn.ModuleDict({"layer": nn.ModuleList(layers)}),
            }
        )
        self.register_buffer("causal", causal_mask(geometry.num_queries), persistent=False)

    def forward(self, query_tokens: Tensor, vision_tokens: Tensor, look_bias: Tensor | None = None) -> Tensor:
        """
        Args:
            look_bias: added to the scores of cross-attention, (n, tokens); SEED-2 has none.
        """
        x = self.bert["embeddings"]["LayerNorm"](query_tokens).expand(vision_tokens.shape[0], -1, -1)
        mask = self.causal.to(x.dtype)
        for layer in self.bert["encoder"]["layer"]:
            x = layer(x, vision_tokens, mask, look_bias)
        return x
