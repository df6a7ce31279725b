"""Decoder modules: transformer blocks over code vectors, and a head that outputs pixels.

Independent of the codebook and of how codes are chosen. The blocks are those of SEED-2's de-tokenizer
(`blocks_image`); the pixel head takes the place of SEED-2's diffusion model.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.models.config import PixelGeometry
from seed_edge.models.grid import INITIAL_SPREAD, cell_centres, log_nearness, query_centres

LAYER_NORM_EPS = 1e-6


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v)
        return self.proj(context.transpose(1, 2).reshape(batch, count, width))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block without a mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = _SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Doubling(nn.Module):
    """Doubles the side of a grid: sub-pixel 1 x 1 convolution, then a residual pair of 3 x 3 convolutions."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(channels_in, 4 * channels, 1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.up(x), 2)
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class PixelHead(nn.Module):
    """Maps code features (batch, n, width) and code vectors to pixels (batch, 3, output_size, output_size).

    Each cell of a grid is the sum of a learnt mixture of all features and of the output of a wide
    feed-forward network over all code vectors at once (`memory`). This network stores much at a low cost:
    each weight is used once per image, not once per token. Convolutions then double the grid until it has the
    size of the image; the last doubling is a sub-pixel convolution. Initially a cell mixes the codes of near
    grid cells (`grid.log_nearness`); semantic codes reach it through the transformer blocks and through
    `memory`.
    """

    def __init__(self, geometry: PixelGeometry) -> None:
        super().__init__()
        width, self.grid = geometry.qformer_width, geometry.pixel_grid
        cells, hidden = self.grid**2, geometry.memory_width
        self.queries = nn.Parameter(torch.randn(1, cells, width) * 0.02)
        self.spread = nn.Linear(geometry.num_queries, cells, bias=False)
        nearness = log_nearness(
            cell_centres(self.grid, self.grid), query_centres(geometry), INITIAL_SPREAD
        ).exp()
        self.spread.weight.data[:, : geometry.semantic_queries] = 0.0
        self.spread.weight.data[:, geometry.semantic_queries :] = F.normalize(nearness, dim=1)
        self.memory = nn.Sequential(
            nn.Linear(geometry.num_queries * geometry.code_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, cells * geometry.memory_channels),
        )
        self.recall = nn.Linear(geometry.memory_channels, width)
        self.mlp = Mlp(width, 2 * width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        channels = (width, *geometry.pixel_channels)
        self.doublings = nn.ModuleList(_Doubling(a, b) for a, b in pairwise(channels))
        self.to_rgb = nn.Conv2d(channels[-1], 12, 3, padding=1)

    def forward(self, features: Tensor, vectors: Tensor) -> Tensor:
        batch, _, width = features.shape
        x = self.spread(features.transpose(1, 2)).transpose(1, 2) + self.queries  # (batch, grid^2, width)
        x = x + self.recall(self.memory(vectors.flatten(1)).view(batch, self.grid**2, -1))
        x = x + self.mlp(self.norm(x))
        x = x.transpose(1, 2).reshape(batch, width, self.grid, self.grid)
        for doubling in self.doublings:
            x = doubling(x)
        return F.pixel_shuffle(self.to_rgb(x), 2) + 0.5
