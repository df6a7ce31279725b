"""Image embeddings to pictures, through the diffusion of a bundle."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError, PromptError
from seed_edge.graphs import unet_graph, vae_graph
from seed_edge.runtime.diffusion import SCHEDULERS, Array, ImageNoise, Schedule, denoise, guided
from seed_edge.runtime.sessions import Device, Session


@dataclass(frozen=True)
class DiffusionOptions:
    """How a picture is walked to; None takes what the manifest says."""

    steps: int | None = None
    guidance: float | None = None
    """1 asks for nothing but the codes; higher follows them more closely."""
    scheduler: str | None = None
    """`pndm`, the reference's, `ddim` or `dpm++`."""

    def __post_init__(self) -> None:
        if self.steps is not None and not 2 <= self.steps <= 500:
            raise PromptError(f"{self.steps} steps: give 2 to 500")
        if self.guidance is not None and self.guidance < 1:
            raise PromptError(f"guidance {self.guidance}: give 1 or more")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise PromptError(f"scheduler {self.scheduler!r} is unknown; choose one of {', '.join(SCHEDULERS)}")


class Unclip:
    """Diffusion and VAE of a bundle; each graph is opened when first used."""

    def __init__(self, bundle: Bundle, device: Device) -> None:
        self._bundle, self._device, self._settings = bundle, device, bundle.diffusion
        self._dim = bundle.manifest.image_embed_dim

    @cached_property
    def _unet(self) -> Session:
        s = self._settings
        return Session(self._bundle.unet, unet_graph(s.latent_channels, s.latent_size, self._dim), self._device)

    @cached_property
    def _vae(self) -> Session:
        s = self._settings
        spec = vae_graph(s.latent_channels, s.latent_size, self._bundle.manifest.output_size)
        return Session(self._bundle.vae, spec, self._device)

    @cached_property
    def _arrays(self) -> tuple[Schedule, ImageNoise]:
        path, s = self._bundle.image_noise, self._settings
        try:
            with np.load(path, allow_pickle=False) as arrays:
                alphas, mean, std = (arrays[name] for name in ("alphas_cumprod", "mean", "std"))
                noise_alpha = float(arrays["noise_alpha"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise BundleError(f"{path} does not hold the arrays of a diffusion ({error}); export again") from error
        if mean.shape != (self._dim,) or std.shape != mean.shape:
            raise BundleError(f"{path} is for {mean.shape} values, the manifest says {self._dim}; export again")
        return Schedule(alphas, s.steps_offset, s.final_alpha_one), ImageNoise(mean, std, noise_alpha)

    def noise(self, seed: int, batch: int) -> tuple[Array, Array]:
        """Latents (batch, channels, size, size) and noise (batch, dim) of image embeddings, drawn from a seed."""
        s, rng = self._settings, np.random.default_rng(seed)
        latents = rng.standard_normal((batch, s.latent_channels, s.latent_size, s.latent_size), dtype=np.float32)
        return latents, rng.standard_normal((batch, self._dim), dtype=np.float32)

    def draw(
        self,
        image_embeds: Array,
        latents: Array,
        noise: Array,
        options: DiffusionOptions,
        negative: Array | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Pixels (batch, 3, S, S) in [0, 1] of image embeddings (batch, dim).

        Args:
            latents: standard normal, where the walk begins.
            noise: standard normal, of the embeddings' shape.
            negative: embeddings to keep away from; by default the class label of zeros that the reference uses.
            progress: called with evaluations done and evaluations in all.

        Raises:
            BundleError: the result is not finite.
        """
        schedule, image_noise = self._arrays
        settings = self._settings
        positive = image_noise.class_labels(image_embeds, noise)
        away = np.zeros_like(positive) if negative is None else image_noise.class_labels(negative, noise)
        guidance = settings.guidance if options.guidance is None else options.guidance
        scheduler = SCHEDULERS[options.scheduler or settings.scheduler](schedule, options.steps or settings.steps)
        final = denoise(guided(self._predict, positive, away, guidance), scheduler, latents, progress)
        pixels = np.concatenate([self._vae(one[None])[0] for one in final]).astype(np.float32)
        if not np.isfinite(pixels).all():
            raise BundleError(f"{self._bundle.vae} gave values that are not numbers; export with --image-weights fp32")
        return pixels

    def _predict(self, latents: Array, timestep: int, labels: Array) -> Array:
        v = self._unet(latents, np.full(len(latents), timestep, np.int64), labels)[0].astype(np.float32)
        if not np.isfinite(v).all():
            raise BundleError(
                f"{self._bundle.unet} gave values that are not numbers at step {timestep}; export with --image-weights fp32"
            )
        return v
