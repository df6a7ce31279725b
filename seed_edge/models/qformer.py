"""Causal Q-Former: learnt queries read the vision tokens, each query seeing only those before it.

A BERT encoder (post-norm) over the queries, with cross-attention to the vision tokens in every n-th layer.
For training against texts it can have BERT's text branch too, which shares the self-attention and has its own
feed-forward. Module names follow the released SEED-2 checkpoint and BLIP-2's, so their tensors load without
renaming.

Source: SEED-LLaMA, Ge et al. 2023, arXiv:2310.01218; BLIP-2, Li et al. 2023, arXiv:2301.12597.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.models.config import Geometry

LAYER_NORM_EPS = 1e-12
HIDDEN = -10000.0
"""Added to a score so that the position is not seen, as the reference does."""
TEXT_POSITIONS = 512


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
    """Causal self-attention, cross-attention where `looks` is set, feed-forward; a second feed-forward if it
    `reads`.
    """

    def __init__(self, geometry: Geometry, looks: bool, reads: bool = False) -> None:
        super().__init__()
        width, heads = geometry.qformer_width, geometry.qformer_heads
        self.attention = Attention(width, width, heads)
        self.crossattention = Attention(width, geometry.vit_width, heads) if looks else None
        self.intermediate_query = _Intermediate(width, geometry.qformer_mlp)
        self.output_query = _Residual(geometry.qformer_mlp, width)
        if reads:
            self.intermediate = _Intermediate(width, geometry.qformer_mlp)
            self.output = _Residual(geometry.qformer_mlp, width)

    def read(self, x: Tensor, mask: Tensor) -> Tensor:
        """Forward pass of text: no vision tokens, and a separate feed-forward network."""
        x = self.attention(x, x, mask)
        return self.output(self.intermediate(x), x)

    def forward(self, x: Tensor, vision_tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, x, mask)
        if self.crossattention is not None:
            x = self.crossattention(x, vision_tokens)
        return self.output_query(self.intermediate_query(x), x)


def causal_mask(num_queries: int) -> Tensor:
    """(n, n): 0 where a query may look, `HIDDEN` where it may not."""
    return (1 - torch.tril(torch.ones(num_queries, num_queries))) * HIDDEN


class CausalQFormer(nn.Module):
    """Vision tokens (batch, tokens, vit_width) and queries (1, n, width) -> (batch, n, width)."""

    causal: Tensor

    def __init__(self, geometry: Geometry, text_vocab: int = 0) -> None:
        """
        Args:
            text_vocab: number of word pieces the text branch knows; 0 for no text branch.
        """
        super().__init__()
        looks = [i % geometry.cross_attention_every == 0 for i in range(geometry.qformer_depth)]
        layers = [Layer(geometry, look, reads=text_vocab > 0) for look in looks]
        embeddings: dict[str, nn.Module] = {
            "LayerNorm": nn.LayerNorm(geometry.qformer_width, eps=LAYER_NORM_EPS)
        }
        if text_vocab:
            embeddings["word_embeddings"] = nn.Embedding(text_vocab, geometry.qformer_width)
            embeddings["position_embeddings"] = nn.Embedding(TEXT_POSITIONS, geometry.qformer_width)
        self.bert = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict(embeddings),
                "encoder": nn.ModuleDict({"layer": nn.ModuleList(layers)}),
            }
        )
        self.register_buffer("causal", causal_mask(geometry.num_queries), persistent=False)

    def _part(self, name: str) -> nn.ModuleDict:
        return cast(nn.ModuleDict, self.bert[name])

    def _layers(self) -> Sequence[Layer]:
        return cast(Sequence[Layer], self._part("encoder")["layer"])

    def read(self, ids: Tensor, present: Tensor) -> Tensor:
        """Word pieces (batch, length) -> features (batch, length, width), every piece seeing every other.

        Args:
            present: (batch, length), 0 where a text has ended.
        """
        embeddings = self._part("embeddings")
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = embeddings["LayerNorm"](
            embeddings["word_embeddings"](ids) + embeddings["position_embeddings"](positions)
        )
        mask = (1 - present[:, None, None].to(x.dtype)) * HIDDEN
        for layer in self._layers():
            x = layer.read(x, mask)
        return x

    def forward(self, query_tokens: Tensor, vision_tokens: Tensor) -> Tensor:
        """
        Args:
            query_tokens: all queries, or the first ones: no query depends on those after it.
        """
        x = self._part("embeddings")["LayerNorm"](query_tokens).expand(vision_tokens.shape[0], -1, -1)
        count = query_tokens.shape[1]
        mask = self.causal[:count, :count].to(x.dtype)
        for layer in self._layers():
            x = layer(x, vision_tokens, mask)
        return x
