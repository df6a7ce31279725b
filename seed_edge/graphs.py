"""Inputs and outputs of the ONNX graphs in a bundle: the exporter writes them so, the runtime checks that they are."""

from __future__ import annotations

from dataclasses import dataclass

BATCH = "batch"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output."""

    name: str
    dtype: str
    """`float32` or `int64`."""
    shape: tuple[int | str, ...]
    """Numbers are fixed; a word names a dynamic axis."""


@dataclass(frozen=True)
class GraphSpec:
    """One graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def encoder_graph(image_size: int, codes_per_image: int) -> GraphSpec:
    """Normalised pixels to codes."""
    return GraphSpec(
        inputs=(TensorSpec("pixel_values", "float32", (BATCH, 3, image_size, image_size)),),
        outputs=(TensorSpec("codes", "int64", (BATCH, codes_per_image)),),
    )


def decoder_graph(codes_per_image: int, output_size: int) -> GraphSpec:
    """Codes to RGB pixels in [0, 1]."""
    return GraphSpec(
        inputs=(TensorSpec("codes", "int64", (BATCH, codes_per_image)),),
        outputs=(TensorSpec("pixels", "float32", (BATCH, 3, output_size, output_size)),),
    )
