"""EVA ViT-g/14, SEED-2's vision trunk: pixels in, vision tokens out, without final norm and head.

A pre-norm ViT with absolute positions; keys have no bias. Module names are those of `eva_vit_g.pth`.

Source: EVA, Fang et al. 2022, arXiv:2211.07636, as BLIP-2 (arXiv:2301.12597) uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.models.config import SeedGeometry
from seed_edge.models.decoder import LAYER_NORM_EPS, Mlp


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v)
        return self.proj(context.transpose(1, 2).reshape(batch, count, width))


class _Block(nn.Module):
    def __init__(self, geometry: SeedGeometry) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(geometry.vit_width, eps=LAYER_NORM_EPS)
        self.attn = _Attention(geometry.vit_width, geometry.vit_heads)
        self.norm2 = nn.LayerNorm(geometry.vit_width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(geometry.vit_width, geometry.vit_mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class EvaViT(nn.Module):
    """Maps normalised pixels (batch, 3, S, S) to vision tokens (batch, 1 + (S/patch)^2, vit_width), class
    token first.
    """

    def __init__(self, geometry: SeedGeometry) -> None:
        super().__init__()
        width, tokens = geometry.vit_width, (geometry.image_size // geometry.patch_size) ** 2 + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.patch_embed = _PatchEmbed(geometry.patch_size, width)
        self.blocks = nn.ModuleList(_Block(geometry) for _ in range(geometry.vit_depth))

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embed(pixel_values)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x
