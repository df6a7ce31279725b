"""Geometry of an image tokenizer: what `geometry.json` beside a checkpoint holds.

Knows shapes only; nothing about the language model, the bundle or ONNX.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from seed_edge.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of every part of an image tokenizer. The field names are those of SEED-2's modules."""

    image_size: int = 224
    """Side of the square encoder input, in pixels."""
    vit_width: int = 928
    """Channels of one vision token, as the trunk hands them to the Q-Former."""
    num_queries: int = 32
    """Queries of the causal Q-Former, which is also the number of codes per image."""
    qformer_width: int = 256
    qformer_depth: int = 4
    qformer_heads: int = 8
    qformer_mlp: int = 1024
    cross_attention_every: int = 2
    """Layers 0, n, 2n, ... of the Q-Former look at the vision tokens."""
    codebook_size: int = 2048
    code_dim: int = 32
    decoder_depth: int = 4
    """Transformer blocks over the code vectors (`blocks_image`)."""
    decoder_heads: int = 8
    output_size: int = 128
    """Side of the square picture the pixel head draws, in pixels."""
    pixel_grid: int = 8
    """Side of the grid of pixel queries."""
    pixel_channels: tuple[int, ...] = (160, 80, 32)
    """Channels after each doubling of the grid, coarsest first; one more doubling makes the pixels."""

    def __post_init__(self) -> None:
        if self.pixel_grid * 2 ** (len(self.pixel_channels) + 1) != self.output_size:
            raise CheckpointError(
                f"geometry: {len(self.pixel_channels) + 1} doublings of a grid of {self.pixel_grid} "
                f"do not give output_size {self.output_size}; mend pixel_channels or output_size"
            )

    def save(self, folder: Path) -> None:
        """Write `geometry.json` into `folder`."""
        (folder / "geometry.json").write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Geometry:
        """Read `geometry.json` from `folder`.

        Raises:
            CheckpointError: the file is missing, is not JSON, or its fields are not exactly ours.
        """
        path = folder / "geometry.json"
        try:
            fields = json.loads(path.read_text())
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing; --ckpt takes a folder written by `seed-edge train`") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != names:
            odd = sorted(set(fields) ^ names) if isinstance(fields, dict) else ["(not an object)"]
            raise CheckpointError(f"{path}: missing or unknown fields: {', '.join(odd)}")
        fields["pixel_channels"] = tuple(fields["pixel_channels"])
        return cls(**fields)
