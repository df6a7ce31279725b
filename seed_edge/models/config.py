"""Geometry of an image tokenizer: the content of `geometry.json` beside a checkpoint.

Contains sizes only, nothing about the language model, the bundle or ONNX.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from seed_edge.display import shown
from seed_edge.errors import CheckpointError
from seed_edge.models.fields import Fields

FILE = "geometry.json"
MAX_FILE_BYTES = 1 << 16
"""Maximum size of `geometry.json`, in bytes."""
LIMITS = {
    "image_size": (14, 2048),
    "vit_width": (1, 1 << 14),
    "num_queries": (1, 1024),
    "qformer_width": (1, 1 << 14),
    "qformer_depth": (1, 256),
    "qformer_heads": (1, 1024),
    "qformer_mlp": (1, 1 << 16),
    "cross_attention_every": (1, 256),
    "codebook_size": (1, 1 << 20),
    "code_dim": (1, 4096),
    "decoder_depth": (0, 256),
    "decoder_heads": (1, 1024),
    "semantic_queries": (0, 1024),
    "semantic_rows": (0, 1 << 20),
    "output_size": (1, 8192),
    "pixel_grid": (1, 256),
    "pixel_channels": (1, 4096),
    "memory_width": (1, 1 << 16),
    "memory_channels": (1, 4096),
    "patch_size": (1, 256),
    "vit_depth": (1, 256),
    "vit_heads": (1, 1024),
    "vit_mlp": (1, 1 << 16),
    "image_embed_dim": (1, 1 << 16),
}
"""Minimum and maximum of each field, far beyond all known models, so that a file cannot cause gigabytes to be
allocated.
"""
MAX_DOUBLINGS = 10
COLOUR_SIDE = 8
"""Side of the square of pixels that each vision token of the embedded model contains."""


def rows_and_columns(count: int) -> tuple[int, int]:
    """Return rows and columns of the squarest grid of `count` cells, rows >= columns: 32 -> (8, 4)."""
    columns = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    return count // columns, columns


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of the parts that every image tokenizer has. The field names are those of SEED-2's modules."""

    image_size: int
    """Side of the square encoder input, in pixels."""
    vit_width: int
    """Channels of a vision token."""
    num_queries: int
    """Queries of the causal Q-Former, which is also the number of codes per image."""
    qformer_width: int
    qformer_depth: int
    qformer_heads: int
    qformer_mlp: int
    cross_attention_every: int
    """Layers 0, n, 2n, ... of the Q-Former have cross-attention to the vision tokens."""
    codebook_size: int
    code_dim: int
    decoder_depth: int
    """Transformer blocks over the code vectors (`blocks_image`)."""
    decoder_heads: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, (minimum, maximum) = getattr(self, field.name), LIMITS[field.name]
            values = value if field.name == "pixel_channels" else (value,)
            if not isinstance(values, tuple) or not 0 < len(values) <= MAX_DOUBLINGS:
                raise CheckpointError(
                    f"geometry: {field.name} is {shown(value)}; it must be 1 to {MAX_DOUBLINGS} integers"
                )
            if not all(type(item) is int and minimum <= item <= maximum for item in values):
                raise CheckpointError(
                    f"geometry: {field.name} is {shown(value)}; it must lie in {minimum} to {maximum:,}"
                )
        for width, heads in (
            ("qformer_width", "qformer_heads"),
            ("qformer_width", "decoder_heads"),
            ("vit_width", "vit_heads"),
        ):
            if getattr(self, width) % getattr(self, heads, 1):
                raise CheckpointError(
                    f"geometry: {width} {getattr(self, width)} cannot be divided into "
                    f"{getattr(self, heads)} {heads}"
                )

    @property
    def own_rows(self) -> tuple[int, int]:
        """Number of leading queries that have separate codebook rows, and number of these rows per query."""
        return (0, 0)

    def save(self, folder: Path) -> None:
        """Write `geometry.json` into `folder`."""
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class PixelGeometry(Geometry):
    """EfficientNet-Lite0 as the trunk and a pixel head as the decoder; the defaults are those of the embedded
    model.

    The first `semantic_queries` see the whole image and describe its content; each of the others describes
    the appearance of one grid cell.
    """

    image_size: int = 224
    vit_width: int = 1120
    num_queries: int = 32
    qformer_width: int = 256
    qformer_depth: int = 2
    qformer_heads: int = 8
    qformer_mlp: int = 1024
    cross_attention_every: int = 1
    codebook_size: int = 2048
    code_dim: int = 8
    decoder_depth: int = 4
    decoder_heads: int = 8
    semantic_queries: int = 16
    semantic_rows: int = 0
    """Codebook rows of each semantic query alone, before the shared rows; 0: all queries share all rows."""
    output_size: int = 128
    """Side of the decoded image, in pixels."""
    pixel_grid: int = 8
    """Side of the grid that the codes are mapped onto."""
    pixel_channels: tuple[int, ...] = (192, 96, 40)
    """Channels after each doubling of the grid, coarsest first; one more doubling gives the pixels."""
    memory_width: int = 2048
    """Width of the feed-forward network over all codes of an image at once."""
    memory_channels: int = 48
    """Channels of its output for each cell of the grid."""

    @property
    def own_rows(self) -> tuple[int, int]:
        return (self.semantic_queries, self.semantic_rows) if self.semantic_rows else (0, 0)

    @property
    def placed_grid(self) -> tuple[int, int]:
        """Rows and columns of the grid of non-semantic queries."""
        return rows_and_columns(self.num_queries - self.semantic_queries)

    @property
    def patch(self) -> tuple[int, int, int]:
        """Shape of the colour patch of a non-semantic query: channels, height, width."""
        side, (rows, columns) = self.image_size // 32 * COLOUR_SIDE, self.placed_grid
        return 3, side // rows, side // columns

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 32:
            raise CheckpointError(
                f"geometry: image_size is {self.image_size}; the trunk takes 32 pixels a side and more"
            )
        if self.semantic_queries * self.semantic_rows >= self.codebook_size:
            raise CheckpointError(
                f"geometry: {self.semantic_queries} queries with {self.semantic_rows} separate rows each "
                f"leave none of {self.codebook_size} rows to the others"
            )
        if self.pixel_grid * 2 ** (len(self.pixel_channels) + 1) != self.output_size:
            raise CheckpointError(
                f"geometry: {len(self.pixel_channels) + 1} doublings of a grid of {self.pixel_grid} "
                f"do not give output_size {self.output_size}; change pixel_channels or output_size"
            )
        if not 0 < self.semantic_queries < self.num_queries:
            raise CheckpointError(
                f"geometry: semantic_queries is {self.semantic_queries}; it must be at least 1 and less than "
                f"num_queries, {self.num_queries}"
            )
        side, cells = self.image_size // 32 * COLOUR_SIDE, self.placed_grid
        if side % cells[0] or side % cells[1]:
            raise CheckpointError(
                f"geometry: a grid of {cells[0]} x {cells[1]} queries does not divide an image of "
                f"{side} x {side} colours; change num_queries or semantic_queries"
            )


@dataclasses.dataclass(frozen=True)
class SeedGeometry(Geometry):
    """EVA ViT as the trunk and an image embedding for unCLIP diffusion as the output; the defaults are those
    of SEED-2.
    """

    image_size: int = 224
    vit_width: int = 1408
    num_queries: int = 32
    qformer_width: int = 768
    qformer_depth: int = 12
    qformer_heads: int = 12
    qformer_mlp: int = 3072
    cross_attention_every: int = 2
    codebook_size: int = 8192
    code_dim: int = 32
    decoder_depth: int = 4
    decoder_heads: int = 12
    patch_size: int = 14
    """Side of one patch, in pixels."""
    vit_depth: int = 39
    vit_heads: int = 16
    vit_mlp: int = 6144
    image_embed_dim: int = 1024
    """Width of the image embedding that conditions the diffusion."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < self.patch_size:
            raise CheckpointError(
                f"geometry: image_size {self.image_size} is smaller than patch_size {self.patch_size}"
            )


def load_geometry(folder: Path) -> PixelGeometry | SeedGeometry:
    """Read `geometry.json` from `folder`; its fields determine the kind.

    Raises:
        CheckpointError: the file is missing, is not JSON, or its fields match no kind.
    """
    path = folder / FILE
    if not path.exists():
        raise CheckpointError(f"{path} is missing; give a folder that `seed-edge train tokenizer` wrote")
    fields = Fields.read(path, MAX_FILE_BYTES).values
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    differences: list[list[str]] = []
    kinds: tuple[type[PixelGeometry] | type[SeedGeometry], ...] = (PixelGeometry, SeedGeometry)
    for kind in kinds:
        names = {field.name for field in dataclasses.fields(kind)}
        if set(fields) == names:
            try:
                return kind(**values)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
        differences.append(sorted(set(fields) ^ names))
    nearest: list[str] = min(differences, key=len)
    raise CheckpointError(f"{path}: missing or unknown fields: {shown(', '.join(nearest))}")
