"""The numpy schedulers against diffusers', on a network whose answer depends on latents and time."""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler

from seed_edge.runtime.diffusion import SCHEDULERS, DpmSolver, Pndm, Schedule, denoise, guided

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float32).astype(np.float64) ** 2
SCHEDULE = Schedule(np.cumprod(1 - BETAS), steps_offset=1, final_alpha_one=False)


def network(latents, timestep):
    return np.tanh(latents * 1.3 + np.roll(latents, 1, -1)) * np.float32(0.4 + timestep / 2000)


def reference(kind, steps, noise, **options):
    scheduler = kind(**CONFIG, steps_offset=1, **options)
    scheduler.set_timesteps(steps)
    latents = torch.from_numpy(noise)
    for timestep in scheduler.timesteps:
        v = torch.from_numpy(network(latents.numpy(), int(timestep)))
        latents = scheduler.step(v, timestep, latents).prev_sample
    return latents.numpy(), scheduler.timesteps.tolist()


@pytest.fixture
def noise():
    return np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("steps", [4, 10, 20, 50])
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("pndm", PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": False}),
        ("ddim", DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
        (
            "dpm++",
            DPMSolverMultistepScheduler,
            {"timestep_spacing": "leading", "lower_order_final": False, "final_sigmas_type": "zero"},
        ),
    ],
)
def test_every_scheduler_walks_as_diffusers_does(name, kind, options, steps, noise):
    wanted, timesteps = reference(kind, steps, noise, **options)
    scheduler = SCHEDULERS[name](SCHEDULE, steps)
    if name == "dpm++":  # diffusers spaces these steps in a way of its own
        scheduler.timesteps = np.array(timesteps)
    assert scheduler.timesteps.tolist() == timesteps
    assert np.abs(denoise(network, scheduler, noise) - wanted).max() < 2e-4


def test_the_reference_asks_21_times_for_20_steps():
    assert Pndm(SCHEDULE, 20).timesteps.tolist()[:4] == [951, 901, 901, 851]
    assert len(Pndm(SCHEDULE, 20).timesteps) == 21


def gaussian(latents, timestep):
    """The exact v for data that is normal with mean 2 and deviation 0.5 in every value."""
    alpha = SCHEDULE.alpha(timestep)
    signal, sigma = alpha**0.5, (1 - alpha) ** 0.5
    clean = 2 + signal * 0.25 / (alpha * 0.25 + 1 - alpha) * (latents - signal * 2)
    return (signal * latents - clean) / sigma


def test_a_better_solver_needs_fewer_evaluations(noise):
    """On Gaussian data the walk's end is known: the noise, scaled to the data's spread, around its mean."""
    start = SCHEDULE.alpha(int(SCHEDULE.spaced(20)[0]))
    spread = (start * 0.25 + 1 - start) ** 0.5
    exact = 2 + 0.5 * (noise - start**0.5 * 2) / spread

    def error(scheduler):
        return np.abs(denoise(lambda x, t: gaussian(x, t).astype(np.float32), scheduler, noise) - exact).mean()

    assert error(DpmSolver(SCHEDULE, 10)) < 0.1
    assert error(DpmSolver(SCHEDULE, 40)) < error(DpmSolver(SCHEDULE, 10))


def test_guidance_pushes_away_from_the_negative_and_costs_nothing_at_one(noise):
    asked = []

    def labelled(latents, timestep, labels):
        asked.append(len(latents))
        return latents * labels[:, :1, None, None]

    positive, negative = np.full((2, 6), 3, np.float32), np.full((2, 6), 1, np.float32)
    assert np.allclose(guided(labelled, positive, negative, 1)(noise, 5), 3 * noise)
    assert np.allclose(guided(labelled, positive, negative, 10)(noise, 5), (1 + 10 * 2) * noise, rtol=1e-5)
    assert asked == [2, 4]


def test_progress_counts_evaluations(noise):
    seen = []
    denoise(network, Pndm(SCHEDULE, 4), noise, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]
