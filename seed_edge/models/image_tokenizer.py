"""Image tokenizers: encoder (trunk, causal Q-Former, quantizer) and decoder in one module.

The common part is SEED-2's, with the module names of its checkpoint. Two kinds differ in their trunk and
their output: `SeedTokenizer` is SEED-2 itself, `PixelTokenizer` is small and decodes to pixels in one pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.models.config import COLOUR_SIDE, Geometry, PixelGeometry, SeedGeometry
from seed_edge.models.decoder import Block, PixelHead
from seed_edge.models.efficientnet import EfficientNetLite
from seed_edge.models.eva import EvaViT
from seed_edge.models.qformer import CausalQFormer
from seed_edge.models.quantizer import Quantized, VectorQuantizer


class ImageTokenizer(nn.Module):
    """Base class of image tokenizers: images to codes and back."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        width = geometry.qformer_width
        self.ln_vision = nn.LayerNorm(geometry.vit_width)
        self.query_tokens = nn.Parameter(torch.randn(1, geometry.num_queries, width) * 0.02)
        self.Qformer = CausalQFormer(geometry)
        self.encode_task_layer = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, geometry.code_dim)
        )
        self.quantize = VectorQuantizer(geometry.codebook_size, geometry.code_dim, geometry.own_rows)
        self.decode_task_layer: nn.Module = nn.Sequential(
            nn.Linear(geometry.code_dim, geometry.code_dim), nn.Tanh(), nn.Linear(geometry.code_dim, width)
        )
        self.pos_embed_image = nn.Parameter(torch.randn(1, geometry.num_queries, width) * 0.02)
        self.blocks_image = nn.ModuleList(
            Block(width, geometry.decoder_heads) for _ in range(geometry.decoder_depth)
        )

    def vision_tokens(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels (batch, 3, S, S) -> output of the trunk (batch, tokens, vit_width)."""
        raise NotImplementedError

    def query_features(self, vision_tokens: Tensor) -> Tensor:
        """Trunk output (batch, tokens, vit_width) -> vectors to quantize (batch, n, code_dim)."""
        return self.encode_task_layer(self.Qformer(self.query_tokens, self.ln_vision(vision_tokens)))

    def quantize_vision(self, vision_tokens: Tensor) -> Quantized:
        """Trunk output (batch, tokens, vit_width) -> quantized vectors; for training on cached features."""
        return self.quantize(self.query_features(vision_tokens))

    def code_features(self, vectors: Tensor) -> Tensor:
        """Code vectors (batch, n, code_dim) -> features (batch, n, width)."""
        x = self.decode_task_layer(vectors) + self.pos_embed_image
        for block in self.blocks_image:
            x = block(x)
        return x

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels (batch, 3, S, S) -> codes (batch, n) int64."""
        return self.quantize.codes(self.query_features(self.vision_tokens(pixel_values)))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (batch, n) -> pixels or image embedding, depending on the kind."""
        raise NotImplementedError


CODE_MOMENTUM = 0.02
"""Momentum of the running mean and variance of each semantic query's vectors."""


class Unfolding(nn.Module):
    """A separate linear map for each query: code vectors (batch, n, code_dim) -> (batch, n, width)."""

    def __init__(self, queries: int, code_dim: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(queries, code_dim, width) * code_dim**-0.5)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map the vectors of all queries, or of the first ones."""
        return torch.einsum("bnd,ndw->bnw", vectors, self.weight[: vectors.shape[1]])


class PixelTokenizer(ImageTokenizer):
    """EfficientNet-Lite0 as the trunk, a pixel head as the decoder.

    The first queries are semantic: they attend to the whole image. Each of the others has one cell of a grid
    over the image; its vector contains the principal components of the pixels in this cell.
    """

    vision_mean: Tensor
    vision_std: Tensor

    def __init__(self, geometry: PixelGeometry) -> None:
        super().__init__(geometry)
        self.geometry = geometry
        semantic, dim, width = geometry.semantic_queries, geometry.code_dim, geometry.qformer_width
        self.trunk = EfficientNetLite()
        # the trunk's channels differ in mean and scale by orders of magnitude; training sets both buffers
        # once
        self.register_buffer("vision_mean", torch.zeros(geometry.vit_width))
        self.register_buffer("vision_std", torch.ones(geometry.vit_width))
        # fixed: learning the input of the first projections would double the training time without a gain
        tokens = (geometry.image_size // 32) ** 2
        self.vision_pos_embed = nn.Parameter(
            torch.randn(1, tokens, geometry.vit_width) * 0.2, requires_grad=False
        )
        self.ln_vision.requires_grad_(False)
        self.key_dropout = 0.0
        self.query_tokens = nn.Parameter(torch.randn(1, semantic, width) * 0.02)
        # semantic vectors start as a linear map of the pooled features, computed once
        # (`train/pixel/semantic_init.py`)
        self.glance = nn.Linear(geometry.vit_width, semantic * dim).requires_grad_(False)
        self.second_look = nn.Parameter(torch.tensor(0.1))
        self.code_norm = nn.BatchNorm1d(semantic * dim, momentum=CODE_MOMENTUM, affine=False)
        # the map of the other queries is computed once and not trained (`train/pixel/patch_pca.py`)
        self.patches = nn.Linear(math.prod(geometry.patch), dim).requires_grad_(False)
        self.decode_task_layer = Unfolding(geometry.num_queries, dim, width)
        self.pixel_head = PixelHead(geometry)

    def vision_tokens(self, pixel_values: Tensor) -> Tensor:
        return self.trunk(pixel_values)

    def normalised_channels(self, vision_tokens: Tensor) -> Tensor:
        """Return the trunk output with normalised channels; in training, whole channels of an image are
        dropped.
        """
        if not self.training:
            return (vision_tokens - self.vision_mean) / self.vision_std
        device = vision_tokens.device.type
        dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.vision_std.dtype
        )
        mask = F.dropout(
            self.vision_std.new_ones(len(vision_tokens), 1, len(self.vision_std)), self.key_dropout
        )
        scale, shift = mask / self.vision_std, -mask * self.vision_mean / self.vision_std
        return torch.addcmul(shift.to(dtype), vision_tokens.to(dtype), scale.to(dtype))

    def query_features(self, vision_tokens: Tensor) -> Tensor:
        patch_vectors = self.patches(patches_of(vision_tokens, self.geometry).flatten(2))
        return torch.cat([self.semantic_features(vision_tokens), patch_vectors], 1)

    def semantic_features(self, vision_tokens: Tensor) -> Tensor:
        """Trunk output -> vectors of the semantic queries (batch, semantic_queries, code_dim)."""
        vision = self.normalised_channels(vision_tokens)
        keys = self.ln_vision(vision) + self.vision_pos_embed.to(vision.dtype)
        z = self.encode_task_layer(self.Qformer(self.query_tokens, keys))
        glance = self.glance(vision.mean(1)).view_as(z)
        z = (glance + self.second_look * z).flatten(1).float()
        norm = self.code_norm  # the vectors of each query are centred and scaled separately
        z = F.batch_norm(
            z,
            norm.running_mean,
            norm.running_var,
            training=self.training,
            momentum=CODE_MOMENTUM,
            eps=norm.eps,
        )
        return z.view_as(glance)

    def semantic_code_features(self, vectors: Tensor) -> Tensor:
        """Semantic code vectors (batch, semantic_queries, code_dim) -> features (batch, semantic_queries,
        width).
        """
        return self.decode_task_layer(vectors) + self.pos_embed_image[:, : vectors.shape[1]]

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Code vectors (batch, n, code_dim) -> pixels (batch, 3, output_size, output_size), not clamped to
        [0, 1].
        """
        return self.pixel_head(self.code_features(vectors), vectors)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (batch, n) -> pixels (batch, 3, output_size, output_size), clamped to [0, 1]."""
        return self.decode_vectors(self.quantize.embedding(codes)).clamp(0, 1)


def patches_of(vision_tokens: Tensor, geometry: PixelGeometry) -> Tensor:
    """Return the colour patches of the non-semantic queries, (batch, queries, 3, height, width)."""
    side, (_, height, width) = geometry.image_size // 32, geometry.patch
    colours = vision_tokens[..., -3 * COLOUR_SIDE**2 :].transpose(1, 2).unflatten(2, (side, side))
    image = F.pixel_shuffle(colours, COLOUR_SIDE)
    # (batch, 3, rows, height, columns, width)
    cells = image.unflatten(3, (-1, width)).unflatten(2, (-1, height))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


class SeedTokenizer(ImageTokenizer):
    """SEED-2: EVA ViT as the trunk, an image embedding for unCLIP diffusion as the output."""

    EMBED_WIDTHS = (256, 128, 32)

    def __init__(self, geometry: SeedGeometry, training: bool = False) -> None:
        """
        Args:
            training: include the branch that reconstructs the Q-Former's output (`pos_embed`, `blocks`),
            which
                the official checkpoint contains and only training uses.
        """
        super().__init__(geometry)
        self.geometry = geometry
        if training:
            self.pos_embed = nn.Parameter(torch.randn(1, geometry.num_queries, geometry.qformer_width) * 0.02)
            blocks = (
                Block(geometry.qformer_width, geometry.decoder_heads) for _ in range(geometry.decoder_depth)
            )
            self.blocks = nn.ModuleList(blocks)
        self.visual_encoder = EvaViT(geometry)
        first, second, last = self.EMBED_WIDTHS
        self.image_down = nn.Sequential(
            nn.Linear(geometry.qformer_width, first, bias=False),
            nn.ReLU(),
            nn.Linear(first, second, bias=False),
            nn.ReLU(),
            nn.Linear(second, last, bias=False),
        )
        self.distill_image_proj = nn.Linear(geometry.num_queries * last, geometry.image_embed_dim)

    def vision_tokens(self, pixel_values: Tensor) -> Tensor:
        return self.visual_encoder(pixel_values)

    def reconstruct(self, vectors: Tensor) -> Tensor:
        """Code vectors (batch, n, code_dim) -> reconstructed output of the Q-Former (batch, n, width); needs
        `training`.
        """
        x = self.decode_task_layer(vectors) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (batch, n) -> image embedding (batch, image_embed_dim), not normalised."""
        return self.embed(self.quantize.embedding(codes))

    def embed(self, vectors: Tensor) -> Tensor:
        """Code vectors (batch, n, code_dim) -> image embedding (batch, image_embed_dim)."""
        return self.distill_image_proj(self.image_down(self.code_features(vectors)).flatten(1))
