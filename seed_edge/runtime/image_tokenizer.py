"""Images to codes and back, through the graphs of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError
from seed_edge.manifest import DECODER, ENCODER
from seed_edge.preprocess import to_images
from seed_edge.runtime.onnx_session import Device, Session
from seed_edge.runtime.part_cache import PartCache
from seed_edge.runtime.unclip import DiffusionOptions, Unclip

BATCH_SIZE = 16
"""Pictures encoded at once; what more of them need while they are worked on no longer fits a processor's cache."""


class ImageTokenizer:
    """Encoder and decoder of a bundle; each graph is opened when first used."""

    def __init__(self, bundle: Bundle, device: Device, parts: PartCache | None = None) -> None:
        """
        Args:
            parts: keeps the graphs; by default all stay open as long as this object.
        """
        self._bundle, self._device = bundle, device
        self._parts = parts or PartCache(bundle)
        self.device = device.name
        """Where graphs run; what is meant to be, until one is open."""

    def _session(self, name: str) -> Session:
        spec = self._bundle.manifest.graphs()[name]
        session = self._parts.get(name, lambda: Session(self._bundle.path / name, spec, self._device))
        self.device = session.device
        return session

    @cached_property
    def _unclip(self) -> Unclip:
        return Unclip(self._bundle, self._device, self._parts)

    def encode(self, images: Sequence[Image.Image]) -> NDArray[np.int64]:
        """Codes of images of any size and mode: (len(images), codes_per_image), each in [0, codebook_size).

        Raises:
            BundleError: a code lies outside the codebook, so graph and manifest come from different exports.
        """
        return self.encode_values(self._bundle.manifest.preprocessing(images))

    def encode_views(self, images: Sequence[Image.Image], count: int) -> NDArray[np.int64]:
        """Codes of images seen in `count` ways; see `Preprocessing.views`.

        Returns:
            (len(images), count, codes_per_image); the first of each image are its codes.
        """
        views, step = self._bundle.manifest.preprocessing.views, max(1, BATCH_SIZE // count)
        codes = []
        for start in range(0, len(images), step):
            codes.append(self.encode_values(np.concatenate([views(image, count) for image in images[start : start + step]])))
        return np.concatenate(codes).reshape(len(images), count, -1)

    def encode_values(self, pixel_values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Codes of normalised pixels (batch, 3, S, S); see `encode`."""
        encoder = self._session(ENCODER)
        most = self._parts.at_once(ENCODER, min(len(pixel_values), BATCH_SIZE))
        parts = [encoder(pixel_values[start : start + most])[0] for start in range(0, len(pixel_values), most)]
        codes = np.concatenate(parts)
        size = self._bundle.manifest.codes.codebook_size
        if codes.min() < 0 or codes.max() >= size:
            raise BundleError(f"{self._bundle.encoder} gave code {codes.max()}, the manifest says {size} codes; export again")
        return codes.astype(np.int64)

    def embed(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Image embeddings (batch, image_embed_dim) of codes (batch, codes_per_image); bundles of kind `unclip`.

        Raises:
            BundleError: the bundle's decoder draws pixels.
        """
        if self._bundle.manifest.kind != "unclip":
            raise BundleError(f"{self._bundle.path} draws pixels and has no image embeddings")
        return self.decoded(codes)

    def decoded(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the decoder's graph gives: pixels or image embeddings, by kind."""
        return self._session(DECODER)(codes)[0].astype(np.float32)

    def decode(
        self,
        codes: NDArray[np.int64],
        seed: int,
        options: DiffusionOptions,
        negative: NDArray[np.int64] | None = None,
        progress: Callable[[int, int], None] | None = None,
        on_latents: Callable[[NDArray[np.float32]], None] | None = None,
    ) -> list[Image.Image]:
        """Pictures of codes (batch, codes_per_image), `output_size` pixels square.

        Args:
            seed: draws latents and noise where the decoder is a diffusion.
            options: of a diffusion.
            negative: codes of the same shape to keep away from, for a diffusion.
            progress: called with steps done and steps in all, by a diffusion.
            on_latents: called with a diffusion's latents before the last stage, which takes the most memory.
        """
        if self._bundle.manifest.kind == "pixels":
            return to_images(self.decoded(codes))
        unclip = self._unclip
        latents, noise = unclip.noise(seed, len(codes))
        away = None if negative is None else self.embed(negative)
        final = unclip.denoise(self.embed(codes), latents, noise, options, away, progress)
        if on_latents is not None:
            on_latents(final)
        return self.decode_latents(final, options.tiled)

    def decode_latents(self, latents: NDArray[np.float32], tiled: bool | None = None) -> list[Image.Image]:
        """Pictures of a diffusion's latents (batch, channels, size, size): the last stage of `decode`."""
        return to_images(self._unclip.decode_latents(latents, tiled))
