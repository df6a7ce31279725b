"""Diffusion from an image embedding to latents: schedulers, guidance and the denoising loop, in numpy.

This module does not know about codes or prompts. The network predicts v (Salimans & Ho 2022,
arXiv:2202.00512). Timesteps are training steps, largest first. All noise comes from the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from seed_edge.errors import PromptError

Array = NDArray[np.float32]
Network = Callable[[Array, int], Array]
"""(latents (batch, 4, h, w), timestep) -> v of the same shape, guidance applied."""


def mix(*terms: tuple[float, Array]) -> Array:
    """Weighted sum of arrays, in float32."""
    total: Array = np.float32(terms[0][0]) * terms[0][1]
    for weight, array in terms[1:]:
        total = total + np.float32(weight) * array
    return total


@dataclass(frozen=True)
class Schedule:
    """The noise schedule: cumulative alpha of each training step, and the spacing of timesteps."""

    alphas_cumprod: NDArray[np.float64]
    """(training steps,), decreasing, in (0, 1)."""
    steps_offset: int
    """Added to the evenly spaced_timesteps timesteps."""
    final_alpha_one: bool
    """Whether the last step ends at alpha 1, without noise, instead of the alpha of the first training step.
    """

    def spaced_timesteps(self, steps: int) -> NDArray[np.int64]:
        """Evenly spaced timesteps (steps,), largest first.

        Raises:
            PromptError: the schedule has too few training steps.
        """
        count, ratio = len(self.alphas_cumprod), len(self.alphas_cumprod) // steps
        if ratio < 1 or (steps - 1) * ratio + self.steps_offset >= count:
            raise PromptError(
                f"{steps} steps do not fit the {count} training steps of this diffusion; use fewer"
            )
        return (np.arange(steps) * ratio)[::-1] + self.steps_offset

    def noise_ratio(self, timestep: int) -> float:
        """Sigma: amplitude of the noise divided by that of the signal."""
        alpha = self.alpha(timestep)
        return math.sqrt((1 - alpha) / alpha)

    def alpha(self, timestep: int) -> float:
        """Cumulative alpha of a timestep; below 0, the alpha after the last step."""
        if timestep >= 0:
            return float(self.alphas_cumprod[timestep])
        return 1.0 if self.final_alpha_one else float(self.alphas_cumprod[0])


class Scheduler(Protocol):
    """Solver from noise to latents; has the state of one denoising run."""

    timesteps: NDArray[np.int64]
    """Timesteps at which the network is evaluated, in order."""

    def step(self, v: Array, index: int, latents: Array) -> Array:
        """Latents after step `index`, at which the network predicted `v` for `latents`."""


@dataclass
class Ddim:
    """Deterministic DDIM (Song et al. 2020, arXiv:2010.02502)."""

    schedule: Schedule
    steps: int
    timesteps: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.timesteps = self.schedule.spaced_timesteps(self.steps)

    def step(self, v: Array, index: int, latents: Array) -> Array:
        timestep = int(self.timesteps[index])
        here = self.schedule.alpha(timestep)
        there = self.schedule.alpha(timestep - len(self.schedule.alphas_cumprod) // self.steps)
        clean = mix((here**0.5, latents), (-((1 - here) ** 0.5), v))
        noise = mix((here**0.5, v), ((1 - here) ** 0.5, latents))
        return mix((there**0.5, clean), ((1 - there) ** 0.5, noise))


ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the latest predictions, newest first, by the number of predictions."""


@dataclass
class Pndm:
    """PNDM without Runge-Kutta steps (Liu et al. 2022, arXiv:2202.09778), as in the reference; needs one
    extra evaluation.
    """

    schedule: Schedule
    steps: int
    timesteps: NDArray[np.int64] = field(init=False)
    _history: list[Array] = field(default_factory=list)
    _first: Array | None = None

    def __post_init__(self) -> None:
        even = self.schedule.spaced_timesteps(self.steps)
        self.timesteps = np.concatenate([even[:2], even[1:]])  # the second timestep is evaluated twice

    def step(self, v: Array, index: int, latents: Array) -> Array:
        ratio = len(self.schedule.alphas_cumprod) // self.steps
        start = int(self.timesteps[index])
        end = start - ratio
        if index == 1:  # repeat the first step with the mean of both predictions
            assert self._first is not None
            start, end = start + ratio, start
            return self._move(mix((0.5, v), (0.5, self._history[-1])), start, end, self._first)
        self._history = [*self._history[-3:], v]
        if index == 0:
            self._first = latents
            return self._move(v, start, end, latents)
        past = self._history[::-1]
        weights = ADAMS_BASHFORTH[len(past)]
        return self._move(mix(*zip(weights, past, strict=True)), start, end, latents)

    def _move(self, v: Array, start: int, end: int, latents: Array) -> Array:
        here, there = self.schedule.alpha(start), self.schedule.alpha(end)
        noise = mix((here**0.5, v), ((1 - here) ** 0.5, latents))
        scale = here * (1 - there) ** 0.5 + (here * (1 - here) * there) ** 0.5
        return mix(((there / here) ** 0.5, latents), (-(there - here) / scale, noise))


@dataclass
class DpmSolver:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095), a second-order solver; ends without noise.

    Steps are evenly spaced in log-SNR, from the noisiest training step. Of steps that fall on the same
    training step, only one is used.
    """

    schedule: Schedule
    steps: int
    timesteps: NDArray[np.int64] = field(init=False)
    _previous: Array | None = None

    def __post_init__(self) -> None:
        alphas, last = self.schedule.alphas_cumprod, self.schedule.steps_offset
        ratios = 0.5 * np.log(alphas / (1 - alphas))  # decreasing
        targets = np.linspace(ratios[-1], ratios[last], self.steps)
        nearest = np.abs(ratios[None] - targets[:, None]).argmin(1)
        self.timesteps = np.unique(nearest)[::-1].astype(np.int64)

    def step(self, v: Array, index: int, latents: Array) -> Array:
        here = self.schedule.alpha(int(self.timesteps[index]))
        clean = mix((here**0.5, latents), (-((1 - here) ** 0.5), v))
        previous, self._previous = self._previous, clean
        if index + 1 == len(self.timesteps):
            return clean
        there = self.schedule.alpha(int(self.timesteps[index + 1]))
        move = self._log_ratio(there) - self._log_ratio(here)
        target = clean
        if previous is not None:
            before = self._log_ratio(here) - self._log_ratio(
                self.schedule.alpha(int(self.timesteps[index - 1]))
            )
            target = mix((1 + 0.5 * move / before, clean), (-0.5 * move / before, previous))
        shrink = ((1 - there) / (1 - here)) ** 0.5
        return mix((shrink, latents), (-(there**0.5) * math.expm1(-move), target))

    @staticmethod
    def _log_ratio(alpha: float) -> float:
        """Logarithm of the ratio of signal to noise amplitude."""
        return 0.5 * math.log(alpha / (1 - alpha))


SCHEDULERS: dict[str, type[Pndm] | type[Ddim] | type[DpmSolver]] = {
    "pndm": Pndm,
    "ddim": Ddim,
    "dpm++": DpmSolver,
}


def denoise(
    network: Network,
    scheduler: Scheduler,
    latents: Array,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """Denoise latents from pure noise.

    Args:
        latents: standard normal noise, (batch, 4, h, w).
        progress: called with the number of evaluations done and the total.
    """
    for index, timestep in enumerate(scheduler.timesteps):
        latents = scheduler.step(network(latents, int(timestep)), index, latents).astype(np.float32)
        if progress is not None:
            progress(index + 1, len(scheduler.timesteps))
    return latents


def guided_network(
    network: Callable[[Array, int, Array], Array],
    positive: Array,
    negative: Array,
    guidance: float,
    is_guided: Callable[[int], bool] = lambda timestep: True,
) -> Network:
    """A network with classifier-free guidance away from `negative`; at guidance 1 only `positive` is
    evaluated.

    Args:
        network: (latents, timestep, class labels) -> v.
        positive: class labels (batch, 2 * image_embed_dim).
        negative: class labels of the same shape; zeros for none.
        is_guided: whether guidance is applied at a timestep; elsewhere only `positive` is evaluated, which is
            half
            the work.
    """
    labels = np.concatenate([negative, positive])

    def predict(latents: Array, timestep: int) -> Array:
        if guidance == 1 or not is_guided(timestep):
            return network(latents, timestep, positive)
        unconditional, conditional = np.split(
            network(np.concatenate([latents, latents]), timestep, labels), 2
        )
        return mix((1 - guidance, unconditional), (guidance, conditional))

    return predict


@dataclass(frozen=True)
class ImageNoise:
    """The noise augmentation of image embeddings in unCLIP."""

    mean: Array
    """(image_embed_dim,)"""
    std: Array
    """(image_embed_dim,)"""
    alpha: float
    """Cumulative alpha at noise level 0, close to 1."""

    def class_labels(self, image_embeds: Array, noise: Array) -> Array:
        """Class labels (batch, 2 * dim) of image embeddings (batch, dim), with standard normal `noise` of
        that shape.

        The second half is the sinusoidal embedding of noise level 0: ones, then zeros.
        """
        centred = (image_embeds - self.mean) / self.std
        noised = mix((self.alpha**0.5, centred), ((1 - self.alpha) ** 0.5, noise))
        half = image_embeds.shape[1] // 2
        level = np.concatenate(
            [np.ones(half, np.float32), np.zeros(image_embeds.shape[1] - half, np.float32)]
        )
        return np.concatenate([noised * self.std + self.mean, np.tile(level, (len(image_embeds), 1))], 1)
