"""Image embeddings to images by the unCLIP diffusion of a bundle: denoising to latents, then the VAE."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError, MemoryShortError, PromptError
from seed_edge.manifest import MAX_GUIDANCE, UNET, VAE
from seed_edge.runtime.onnx_session import Device, Session
from seed_edge.runtime.part_cache import PartCache
from seed_edge.runtime.schedulers import (
    SCHEDULERS,
    Array,
    ImageNoise,
    Schedule,
    Scheduler,
    denoise,
    guided_network,
)

log = logging.getLogger("seed_edge")

MEMORY_PER_PIXEL = 6000
"""Memory in bytes per pixel to decode a whole image (`benchmarks/full_diffusion.py`: 3.9 GB for 768 x 768 in
total).
"""
TILE, OVERLAP = 48, 12
"""Side of a tile and overlap of neighbouring tiles, in latents."""


def decode_tiled(decode: Callable[[Array], Array], latents: Array, scale: int) -> Array:
    """Decode `latents` (batch, channels, h, w) in tiles, and blend the pixels where tiles overlap.

    Args:
        scale: pixels per latent.
    """
    batch, _, height, width = latents.shape
    pixels = np.zeros((batch, 3, height * scale, width * scale), np.float32)
    weights = np.zeros((height * scale, width * scale), np.float32)
    for y in starts(height):
        for x in starts(width):
            tile = decode(latents[:, :, y : y + TILE, x : x + TILE])
            rows, columns = tile.shape[2:]
            weight = np.minimum.outer(ramp(rows, OVERLAP * scale), ramp(columns, OVERLAP * scale))
            where = (slice(y * scale, y * scale + rows), slice(x * scale, x * scale + columns))
            pixels[:, :, *where] += tile * weight
            weights[where] += weight
    return (pixels / weights).astype(np.float32)


def starts(length: int) -> list[int]:
    """Offsets of tiles that cover `length` latents; the last tile ends at `length`."""
    return [*range(0, max(length - TILE, 0), TILE - OVERLAP), max(length - TILE, 0)]


def ramp(length: int, rise: int) -> Array:
    """Weights of a tile's rows: rising over `rise` from both ends, then 1."""
    from_end = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    return np.minimum(from_end / rise, 1).astype(np.float32)


@dataclass(frozen=True)
class DiffusionOptions:
    """Options of a diffusion; None takes the manifest's value.

    Raises:
        PromptError: a value is out of range.
    """

    steps: int | None = None
    """Number of diffusion steps, 2 to 500."""
    guidance: float | None = None
    """Guidance scale, 1 to 1000; 1 turns guidance off, higher values follow the codes more closely."""
    scheduler: str | None = None
    """`pndm` (the reference's), `ddim` or `dpm++`."""
    guided_between: tuple[float, float] | None = None
    """Lowest and highest ratio of noise to signal at which guidance is applied; by default always."""
    tiled: bool | None = None
    """Whether the VAE decodes in tiles, which takes less memory; by default if memory is short."""

    def __post_init__(self) -> None:
        if self.steps is not None and not 2 <= self.steps <= 500:
            raise PromptError(f"steps is {self.steps}; it must be 2 to 500")
        if self.guidance is not None and not 1 <= self.guidance <= MAX_GUIDANCE:
            raise PromptError(f"guidance is {self.guidance}; it must be 1 to {MAX_GUIDANCE:g}")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise PromptError(
                f"scheduler {self.scheduler!r} is unknown; choose one of {', '.join(SCHEDULERS)}"
            )
        if self.guided_between is not None and not 0 <= self.guided_between[0] <= self.guided_between[1]:
            raise PromptError(
                f"guided_between is {self.guided_between}; it must be (lowest, highest) noise ratio"
            )


FAST = DiffusionOptions(steps=9, scheduler="dpm++", guided_between=(0.28, 5.42))
"""A third of the reference's evaluations: a solver that needs fewer steps, and guidance only at medium noise
levels (interval of Kynkäänniemi et al. 2024, arXiv:2404.07724).
"""


class Unclip:
    """Diffusion and VAE of a bundle; each graph is opened when first used."""

    def __init__(self, bundle: Bundle, device: Device, parts: PartCache | None = None) -> None:
        """
        Args:
            parts: holds the open graphs; by default both stay open as long as this object.
        """
        self._bundle, self._device, self._settings = bundle, device, bundle.diffusion
        self._parts = parts or PartCache(bundle)
        self._dim = bundle.manifest.image_embed_dim

    def _unet(self) -> Session:
        spec = self._bundle.manifest.graphs()[UNET]
        return self._parts.get(UNET, lambda: Session(self._bundle.unet, spec, self._device))

    def _vae(self, running: int) -> Session:
        # an arena would keep half as much memory again, only to speed up a second run
        spec = self._bundle.manifest.graphs()[VAE]
        return self._parts.get(
            VAE, lambda: Session(self._bundle.vae, spec, self._device, arena=False), running
        )

    @cached_property
    def _arrays(self) -> tuple[Schedule, ImageNoise]:
        from seed_edge.diffusion_arrays import read_noise_arrays

        s = self._settings
        arrays = read_noise_arrays(self._bundle.image_noise, self._dim, s.steps_offset)
        mean, std = (arrays[name].astype(np.float32) for name in ("mean", "std"))
        schedule = Schedule(arrays["alphas_cumprod"], s.steps_offset, s.final_alpha_one)
        return schedule, ImageNoise(mean, std, float(arrays["noise_alpha"]))

    def noise(self, seed: int, batch: int) -> tuple[Array, Array]:
        """Standard normal initial latents (batch, channels, size, size) and embedding noise (batch, dim)."""
        s, rng = self._settings, np.random.default_rng(seed)
        latents = rng.standard_normal(
            (batch, s.latent_channels, s.latent_size, s.latent_size), dtype=np.float32
        )
        return latents, rng.standard_normal((batch, self._dim), dtype=np.float32)

    def denoise(
        self,
        image_embeds: Array,
        latents: Array,
        noise: Array,
        options: DiffusionOptions,
        negative: Array | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Array:
        """Denoise latents (batch, channels, size, size) conditioned on image embeddings (batch, dim).

        Args:
            latents: standard normal; the initial latents.
            noise: standard normal, of the embeddings' shape.
            negative: embeddings that the diffusion is guided away from; by default class labels of zeros, as
                in the reference.
            progress: called with the number of evaluations done and the total.

        Raises:
            BundleError: a prediction is not finite.
        """
        _, image_noise = self._arrays
        positive = image_noise.class_labels(image_embeds, noise)
        negative_labels = np.zeros_like(positive)
        if negative is not None:
            negative_labels = image_noise.class_labels(negative, noise)
        scheduler, guidance, is_guided = self._plan(options)
        network = guided_network(self.predict, positive, negative_labels, guidance, is_guided)
        return denoise(network, scheduler, latents, progress)

    def evaluations(self, options: DiffusionOptions) -> int:
        """Number of evaluations of the network for one image."""
        scheduler, guidance, is_guided = self._plan(options)
        return sum(2 if guidance != 1 and is_guided(int(timestep)) else 1 for timestep in scheduler.timesteps)

    def _plan(self, options: DiffusionOptions) -> tuple[Scheduler, float, Callable[[int], bool]]:
        """Scheduler, guidance scale, and a function that returns whether guidance is applied at a
        timestep.
        """
        schedule, _ = self._arrays
        settings = self._settings
        lowest, highest = options.guided_between or (0.0, math.inf)
        return (
            SCHEDULERS[options.scheduler or settings.scheduler](schedule, options.steps or settings.steps),
            settings.guidance if options.guidance is None else options.guidance,
            lambda timestep: lowest <= schedule.noise_ratio(timestep) <= highest,
        )

    def decode_latents(self, latents: Array, tiled: bool | None = None) -> NDArray[np.float32]:
        """Decode latents (batch, channels, size, size) to pixels (batch, 3, S, S) in [0, 1].

        Args:
            tiled: as in `DiffusionOptions`.

        Raises:
            BundleError: `latents` do not have this bundle's shape, or the result is not finite.
        """
        s, side = self._settings, self._bundle.manifest.output_size
        expected = (s.latent_channels, s.latent_size, s.latent_size)
        if latents.ndim != 4 or latents.shape[1:] != expected:
            raise BundleError(
                f"latents have shape {latents.shape}; {self._bundle.path} expects (batch, "
                f"{', '.join(map(str, expected))})"
            )
        automatic, whole = tiled is None, side**2 * MEMORY_PER_PIXEL
        if tiled is None:
            tiled = self._parts.one_at_a_time or not self._parts.evict_until_fits(VAE, whole)
            if tiled and not self._parts.one_at_a_time:
                log.warning("memory is short (a whole image needs %.1f GB): decoding in tiles", whole / 1e9)
        try:
            pixels = np.concatenate(
                [self._decode_latents(one[None], tiled) for one in latents.astype(np.float32)]
            )
        except MemoryShortError as error:
            if not automatic:
                raise
            log.warning("%s; decoding in tiles", error)
            pixels = np.concatenate(
                [self._decode_latents(one[None], tiled=True) for one in latents.astype(np.float32)]
            )
        if not np.isfinite(pixels).all():
            raise BundleError(
                f"{self._bundle.vae} gave values that are not finite; export with --image-weights fp32"
            )
        return pixels

    def _decode_latents(self, latents: Array, tiled: bool) -> Array:
        """Pixels (1, 3, S, S) of latents (1, channels, size, size)."""
        side, size = self._bundle.manifest.output_size, self._settings.latent_size
        whole = side**2 * MEMORY_PER_PIXEL
        vae = self._vae(int(whole * min(TILE / size, 1) ** 2) if tiled else whole)

        def decode(part: Array) -> Array:
            return vae(part)[0].astype(np.float32)

        return decode_tiled(decode, latents, side // size) if tiled else decode(latents)

    def predict(self, latents: Array, timestep: int, labels: Array) -> Array:
        """One evaluation of the U-Net: v (batch, channels, size, size), in float32.

        Args:
            latents: (batch, channels, size, size).
            timestep: in [0, training steps).
            labels: class labels (batch, 2 * dim).

        Raises:
            BundleError: a value is not finite.
        """
        # on a CPU a batch is not faster than single images, and needs more memory
        unet = self._unet()
        size = 1 if unet.device == "cpu" else len(latents)
        parts = [slice(start, start + size) for start in range(0, len(latents), size)]
        outputs = [
            unet(latents[p], np.full(len(latents[p]), timestep, np.int64), labels[p])[0] for p in parts
        ]
        v = np.concatenate(outputs).astype(np.float32)
        if not np.isfinite(v).all():
            raise BundleError(
                f"{self._bundle.unet} gave values that are not finite at timestep {timestep}; export with "
                "--image-weights fp32"
            )
        return v
