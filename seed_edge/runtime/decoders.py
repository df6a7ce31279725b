"""The two kinds of image decoders: one that draws pixels in one pass, and one that conditions an unCLIP
diffusion.

A new kind is a class with the methods of `Decoder` and an entry in `DECODERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError
from seed_edge.preprocess import to_images
from seed_edge.runtime.onnx_session import Device
from seed_edge.runtime.part_cache import PartCache
from seed_edge.runtime.unclip import DiffusionOptions, Unclip

RunGraph = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Runs decoder.onnx: codes (batch, codes_per_image) to its output."""
Progress = Callable[[int, int], None]
"""Called with the steps done and the total number of steps."""
OnLatents = Callable[[NDArray[np.float32]], None]
"""Called with the latents (batch, channels, size, size) of a diffusion."""


class Decoder(Protocol):
    """Turns codes into images."""

    uses_diffusion: bool
    """Whether `DiffusionOptions` apply; if so, a negative prompt guides the diffusion, otherwise it guides
    the codes.
    """

    def require(self) -> None:
        """Raise a `BundleError` if the bundle lacks a part that is needed to make images."""

    def decode(
        self,
        codes: NDArray[np.int64],
        seed: int,
        options: DiffusionOptions,
        negative: NDArray[np.int64] | None = None,
        progress: Progress | None = None,
        on_latents: OnLatents | None = None,
    ) -> list[Image.Image]:
        """Decode codes (batch, codes_per_image) to images of `output_size` pixels square.

        Args:
            seed: seed of the diffusion's initial noise.
            options: options of the diffusion.
            negative: codes of the same shape that the diffusion is guided away from.
            progress: called after each step of the diffusion.
            on_latents: called with the diffusion's result before the VAE, which takes the most memory.
        """

    def decode_latents(self, latents: NDArray[np.float32], tiled: bool | None) -> list[Image.Image]:
        """Decode latents (batch, channels, size, size) to images: the last stage of a diffusion.

        Args:
            tiled: decode in tiles, which needs less memory; None decides by the free memory.

        Raises:
            BundleError: the bundle has no diffusion.
        """

    def embed(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Image embeddings (batch, image_embed_dim) of codes (batch, codes_per_image).

        Raises:
            BundleError: this decoder has no image embeddings.
        """

    def settings(self, options: DiffusionOptions) -> dict[str, Any]:
        """Settings of the diffusion by `options` and the manifest, as fields of `image_metadata.Record`."""


class PixelDecoder:
    """decoder.onnx draws the pixels in one pass."""

    uses_diffusion = False

    def __init__(self, bundle: Bundle, device: Device, parts: PartCache, run_graph: RunGraph) -> None:
        self._bundle, self._run_graph = bundle, run_graph

    def require(self) -> None:
        """Do nothing: every bundle of this kind can make images."""

    def decode(
        self,
        codes: NDArray[np.int64],
        seed: int,
        options: DiffusionOptions,
        negative: NDArray[np.int64] | None = None,
        progress: Progress | None = None,
        on_latents: OnLatents | None = None,
    ) -> list[Image.Image]:
        """See `Decoder.decode`; only `codes` is used."""
        return to_images(self._run_graph(codes))

    def decode_latents(self, latents: NDArray[np.float32], tiled: bool | None) -> list[Image.Image]:
        _ = self._bundle.diffusion
        raise BundleError(f"{self._bundle.path} draws pixels and has no latents")

    def embed(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        raise BundleError(f"{self._bundle.path} draws pixels and has no image embeddings")

    def settings(self, options: DiffusionOptions) -> dict[str, Any]:
        return {}


class UnclipDecoder:
    """decoder.onnx gives an image embedding, which conditions a diffusion (`Unclip`)."""

    uses_diffusion = True

    def __init__(self, bundle: Bundle, device: Device, parts: PartCache, run_graph: RunGraph) -> None:
        self._bundle, self._device, self._parts, self._run_graph = bundle, device, parts, run_graph

    @cached_property
    def unclip(self) -> Unclip:
        """The diffusion.

        Raises:
            BundleError: the bundle has none.
        """
        return Unclip(self._bundle, self._device, self._parts)

    def require(self) -> None:
        _ = self._bundle.diffusion

    def decode(
        self,
        codes: NDArray[np.int64],
        seed: int,
        options: DiffusionOptions,
        negative: NDArray[np.int64] | None = None,
        progress: Progress | None = None,
        on_latents: OnLatents | None = None,
    ) -> list[Image.Image]:
        latents, noise = self.unclip.noise(seed, len(codes))
        negative_embeds = None if negative is None else self.embed(negative)
        result = self.unclip.denoise(self.embed(codes), latents, noise, options, negative_embeds, progress)
        if on_latents is not None:
            on_latents(result)
        return self.decode_latents(result, options.tiled)

    def decode_latents(self, latents: NDArray[np.float32], tiled: bool | None) -> list[Image.Image]:
        return to_images(self.unclip.decode_latents(latents, tiled))

    def embed(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._run_graph(codes)

    def settings(self, options: DiffusionOptions) -> dict[str, Any]:
        default = self._bundle.manifest.diffusion
        if default is None:
            return {}
        return {
            "steps": options.steps or default.steps,
            "guidance": default.guidance if options.guidance is None else options.guidance,
            "scheduler": options.scheduler or default.scheduler,
            "guided_between": options.guided_between,
        }


DECODERS: dict[str, type[PixelDecoder] | type[UnclipDecoder]] = {
    "pixels": PixelDecoder,
    "unclip": UnclipDecoder,
}
"""The class of each `kind` in a manifest."""
