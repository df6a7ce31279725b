"""Causal Q-Former: learnt queries attend to the vision tokens, and each query to the queries before it.

A BERT encoder (post-norm) over the queries, with cross-attention to the vision tokens in every n-th layer.
For contrastive training it can include BERT's text branch, which shares the self-attention and has a separate
feed-forward network. Module names are those of the released SEED-2 and BLIP-2 checkpoints, so that their
tensors load without renaming.

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
MASKED_SCORE = -10000.0
"""Added to the attention score of a masked position, as in the reference."""
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
    """Causal self-attention, optional cross-attention, and feed-forward networks for queries and optionally
    text.
    """

    def __init__(self, geometry: Geometry, cross_attention: bool, text_branch: bool = False) -> None:
        super().__init__()
        width, heads = geometry.qformer_width, geometry.qformer_heads
        self.attention = Attention(width, width, heads)
        self.crossattention = Attention(width, geometry.vit_width, heads) if cross_attention else None
        self.intermediate_query = _Intermediate(width, geometry.qformer_mlp)
        self.output_query = _Residual(geometry.qformer_mlp, width)
        if text_branch:
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
    """Return the mask (n, n): 0 where a query may attend, `MASKED_SCORE` elsewhere."""
    return (1 - torch.tril(torch.ones(num_queries, num_queries))) * MASKED_SCORE


class CausalQFormer(nn.Module):
    """Vision tokens (batch, tokens, vit_width) and queries (1, n, width) -> features (batch, n, width)."""

    causal: Tensor

    def __init__(self, geometry: Geometry, text_vocab: int = 0) -> None:
        """
        Args:
            text_vocab: vocabulary size of the text branch; 0: no text branch.
        """
        super().__init__()
        cross_attention = [i % geometry.cross_attention_every == 0 for i in range(geometry.qformer_depth)]
        layers = [Layer(geometry, cross, text_branch=text_vocab > 0) for cross in cross_attention]
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
        """Word pieces (batch, length) -> features (batch, length, width); attention is bidirectional.

        Args:
            present: attention mask (batch, length), 0 for padding.
        """
        embeddings = self._part("embeddings")
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = embeddings["LayerNorm"](
            embeddings["word_embeddings"](ids) + embeddings["position_embeddings"](positions)
        )
        mask = (1 - present[:, None, None].to(x.dtype)) * MASKED_SCORE
        for layer in self._layers():
            x = layer.read(x, mask)
        return x

    def forward(self, query_tokens: Tensor, vision_tokens: Tensor) -> Tensor:
        """
        Args:
            query_tokens: all queries or the first ones, since no query depends on those after it.
        """
        x = self._part("embeddings")["LayerNorm"](query_tokens).expand(vision_tokens.shape[0], -1, -1)
        count = query_tokens.shape[1]
        mask = self.causal[:count, :count].to(x.dtype)
        for layer in self._layers():
            x = layer(x, vision_tokens, mask)
        return x
