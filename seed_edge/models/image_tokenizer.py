"""The image tokenizer: encoder (trunk, causal Q-Former, quantizer) and decoder in one module.

Module names are those of SEED-2's checkpoint; `trunk` and `pixel_head` stand where SEED-2 has EVA ViT-g and
unCLIP diffusion.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seed_edge.models.config import Geometry
from seed_edge.models.decoder import Block, PixelHead
from seed_edge.models.qformer import CausalQFormer
from seed_edge.models.quantizer import Quantized, VectorQuantizer
from seed_edge.models.trunk import EfficientNetLite0


class ImageTokenizer(nn.Module):
    """Images to codes and back."""

    vision_mean: Tensor
    vision_std: Tensor

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        width = geometry.qformer_width
        self.trunk = EfficientNetLite0()
        # channels of the trunk differ in mean and spread by orders of magnitude; training sets these two once
        self.register_buffer("vision_mean", torch.zeros(geometry.vit_width))
        self.register_buffer("vision_std", torch.ones(geometry.vit_width))
        self.ln_vision = nn.LayerNorm(geometry.vit_width)
        self.vision_pos_embed = nn.Parameter(torch.randn(1, (geometry.image_size // 32) ** 2, geometry.vit_width) * 0.2)
        self.query_tokens = nn.Parameter(torch.randn(1, geometry.num_queries, width) * 0.02)
        self.Qformer = CausalQFormer(geometry)
        self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, geometry.code_dim))
        # each query's vectors are centred and scaled on their own, so that all queries share the whole codebook
        self.code_norm = nn.BatchNorm1d(geometry.num_queries * geometry.code_dim, momentum=0.02, affine=False)
        self.quantize = VectorQuantizer(geometry.codebook_size, geometry.code_dim)
        self.decode_task_layer = nn.Sequential(
            nn.Linear(geometry.code_dim, geometry.code_dim), nn.Tanh(), nn.Linear(geometry.code_dim, width)
        )
        self.pos_embed_image = nn.Parameter(torch.randn(1, geometry.num_queries, width) * 0.02)
        self.blocks_image = nn.ModuleList(Block(width, geometry.decoder_heads) for _ in range(geometry.decoder_depth))
        self.pixel_head = PixelHead(geometry)

    def query_features(self, vision_tokens: Tensor) -> Tensor:
        """Trunk output (batch, tokens, vit_width) -> vectors to quantize (batch, n, code_dim)."""
        vision = (vision_tokens - self.vision_mean) / self.vision_std
        vision = self.ln_vision(vision) + self.vision_pos_embed
        z = self.encode_task_layer(self.Qformer(self.query_tokens, vision))
        return self.code_norm(z.flatten(1).float()).view(z.shape)

    def quantize_vision(self, vision_tokens: Tensor) -> Quantized:
        """Trunk output -> quantized vectors, for training on cached features."""
        return self.quantize(self.query_features(vision_tokens))

    def code_features(self, vectors: Tensor) -> Tensor:
        """Code vectors (batch, n, code_dim) -> features (batch, n, width), before the pixel head."""
        x = self.decode_task_layer(vectors) + self.pos_embed_image
        for block in self.blocks_image:
            x = block(x)
        return x

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels (batch, 3, S, S) -> codes (batch, n) int64."""
        return self.quantize.codes(self.query_features(self.trunk(pixel_values)))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (batch, n) -> pixels (batch, 3, output_size, output_size), clamped to [0, 1]."""
        return self.pixel_head(self.code_features(self.quantize.embedding(codes))).clamp(0, 1)
