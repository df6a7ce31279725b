"""Encodes images to codes and runs the decoder, with encoder.onnx and decoder.onnx of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError
from seed_edge.manifest import DECODER, ENCODER
from seed_edge.runtime.decoders import DECODERS, Decoder
from seed_edge.runtime.onnx_session import Device, Session
from seed_edge.runtime.part_cache import PartCache

BATCH_SIZE = 16
"""Maximum number of images that are encoded together; activations of more exceed the CPU cache."""


class ImageTokenizer:
    """Encoder and decoder of a bundle; each graph is opened when first used."""

    def __init__(self, bundle: Bundle, device: Device, parts: PartCache | None = None) -> None:
        """
        Args:
            parts: cache of open graphs; by default a new one.
        """
        self._bundle, self._device = bundle, device
        self._parts = parts or PartCache(bundle)
        self.device = device.name
        """Device of the graphs, `cpu` or `cuda`; the requested device until a graph is open."""

    def _session(self, name: str) -> Session:
        spec = self._bundle.manifest.graphs()[name]
        session = self._parts.get(name, lambda: Session(self._bundle.path / name, spec, self._device))
        self.device = session.device
        return session

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder of the bundle's kind."""
        return DECODERS[self._bundle.manifest.kind](self._bundle, self._device, self._parts, self.run_decoder)

    def encode(self, images: Sequence[Image.Image]) -> NDArray[np.int64]:
        """Encode images of any size and mode to codes (len(images), codes_per_image) in [0, codebook_size).

        Raises:
            BundleError: a code is outside the codebook, so graph and manifest come from different exports.
        """
        return self.encode_values(self._bundle.manifest.preprocessing(images))

    def encode_views(self, images: Sequence[Image.Image], count: int) -> NDArray[np.int64]:
        """Codes of `count` augmented views of each image; see `Preprocessing.views`.

        Returns:
            (len(images), count, codes_per_image); the first view is the image itself.
        """
        views, step = self._bundle.manifest.preprocessing.views, max(1, BATCH_SIZE // count)
        codes = []
        for start in range(0, len(images), step):
            codes.append(
                self.encode_values(
                    np.concatenate([views(image, count) for image in images[start : start + step]])
                )
            )
        return np.concatenate(codes).reshape(len(images), count, -1)

    def encode_values(self, pixel_values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Codes of normalised pixels (batch, 3, S, S); see `encode`."""
        encoder = self._session(ENCODER)
        size = self._parts.batch_size(ENCODER, min(len(pixel_values), BATCH_SIZE))
        batches = [pixel_values[start : start + size] for start in range(0, len(pixel_values), size)]
        codes = np.concatenate([encoder(batch)[0] for batch in batches])
        codebook_size = self._bundle.manifest.codes.codebook_size
        if codes.min() < 0 or codes.max() >= codebook_size:
            raise BundleError(
                f"{self._bundle.encoder} gave code {codes.max()}, but the codebook has {codebook_size}; "
                "export again"
            )
        return codes.astype(np.int64)

    def run_decoder(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Output of decoder.onnx for codes (batch, codes_per_image).

        Returns:
            Pixels (batch, 3, output_size, output_size), or image embeddings (batch, image_embed_dim), by the
            bundle's kind.
        """
        return self._session(DECODER)(codes)[0].astype(np.float32)
