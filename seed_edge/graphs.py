"""Inputs and outputs of the ONNX graphs in a bundle, which the exporter writes and the runtime checks."""

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
    """Integers are fixed sizes; strings are names of dynamic axes."""


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


def pixel_decoder_graph(codes_per_image: int, output_size: int) -> GraphSpec:
    """Codes to RGB pixels in [0, 1]."""
    return GraphSpec(
        inputs=(TensorSpec("codes", "int64", (BATCH, codes_per_image)),),
        outputs=(TensorSpec("pixels", "float32", (BATCH, 3, output_size, output_size)),),
    )


def embedding_decoder_graph(codes_per_image: int, image_embed_dim: int) -> GraphSpec:
    """Codes to image embeddings, not normalised."""
    return GraphSpec(
        inputs=(TensorSpec("codes", "int64", (BATCH, codes_per_image)),),
        outputs=(TensorSpec("image_embeds", "float32", (BATCH, image_embed_dim)),),
    )


def unet_graph(channels: int, size: int, image_embed_dim: int) -> GraphSpec:
    """Noisy latents to v, conditioned by class labels from image embeddings; the embedding of the empty text
    is a constant of the graph.
    """
    latents = (BATCH, channels, size, size)
    return GraphSpec(
        inputs=(
            TensorSpec("latents", "float32", latents),
            TensorSpec("timestep", "int64", (BATCH,)),
            TensorSpec("class_labels", "float32", (BATCH, 2 * image_embed_dim)),
        ),
        outputs=(TensorSpec("v", "float32", latents),),
    )


def vae_graph(channels: int) -> GraphSpec:
    """Latents to RGB pixels in [0, 1], of a whole image or of a tile."""
    return GraphSpec(
        inputs=(TensorSpec("latents", "float32", (BATCH, channels, "rows", "columns")),),
        outputs=(TensorSpec("pixels", "float32", (BATCH, 3, "pixel rows", "pixel columns")),),
    )
