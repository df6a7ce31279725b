"""The numpy schedulers against diffusers', on a network whose answer depends on latents and time."""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler

from seed_edge.runtime.schedulers import SCHEDULERS, DpmSolver, Pndm, Schedule, denoise, guided_network

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
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


SPREADS = np.array([0.02, 0.1, 0.25, 0.5, 0.8, 1.0, 1.5])[:, None]
MEANS = np.array([-1.0, 0.0, 0.5, 2.0])[None]


def gaussian(latents, timestep):
    """The exact v for values that are normal with those means and spreads; latents (..., spreads, means)."""
    alpha = SCHEDULE.alphas_cumprod[timestep]
    noise = (1 - alpha) ** 0.5 * (latents - alpha**0.5 * MEANS) / (alpha * SPREADS**2 + 1 - alpha)
    clean = (latents - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    return alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean


def gaussian_error(scheduler):
    """Root mean square error of means and spreads where a walk ends that begins with standard normal noise.

    The flow that a walk follows is known here: it only scales and shifts, so that noise at the last training
    step ends at the data's mean and spread, but for what pure noise lacks of the data's mean there. Walks are
    linear too: two noises tell all.
    """
    ends = []
    for noise in (0.0, 1.0):
        latents = np.full((len(SPREADS), MEANS.shape[1]), noise)
        for index, timestep in enumerate(scheduler.timesteps):
            latents = scheduler.step(gaussian(latents, int(timestep)), index, latents)
        ends.append(latents)
    alpha = SCHEDULE.alphas_cumprod[-1]
    scale = SPREADS / (alpha * SPREADS**2 + 1 - alpha) ** 0.5
    wrong = [(ends[1] - ends[0]) - scale, ends[0] - (MEANS - scale * alpha**0.5 * MEANS)]
    return np.sqrt(sum(each**2 for each in wrong).mean())


def test_a_better_solver_at_10_evaluations_is_no_worse_than_the_reference_at_21():
    reference = gaussian_error(Pndm(SCHEDULE, 20))
    assert (
        gaussian_error(Pndm(SCHEDULE, 200)) < 0.25 * reference
    )  # what it is compared with is what walks end at
    for steps in (6, 9, 10):
        assert gaussian_error(DpmSolver(SCHEDULE, steps)) < 0.3 * reference
    assert gaussian_error(DpmSolver(SCHEDULE, 40)) < gaussian_error(DpmSolver(SCHEDULE, 10))


def test_steps_are_even_in_log_signal_over_noise_and_never_fall_together():
    timesteps = DpmSolver(SCHEDULE, 9).timesteps
    ratios = np.log([1 / SCHEDULE.noise_ratio(int(t)) for t in timesteps])
    assert (timesteps[0], timesteps[-1], len(timesteps)) == (999, 1, 9)
    assert np.diff(ratios) == pytest.approx(np.diff(ratios).mean(), rel=0.15)
    many = DpmSolver(SCHEDULE, 500).timesteps
    assert len(set(many.tolist())) == len(many) < 500 and (np.diff(many) < 0).all()


def test_guidance_pushes_away_from_the_negative_and_costs_nothing_at_one(noise):
    asked = []

    def labelled(latents, timestep, labels):
        asked.append(len(latents))
        return latents * labels[:, :1, None, None]

    positive, negative = np.full((2, 6), 3, np.float32), np.full((2, 6), 1, np.float32)
    assert np.allclose(guided_network(labelled, positive, negative, 1)(noise, 5), 3 * noise)
    assert np.allclose(
        guided_network(labelled, positive, negative, 10)(noise, 5), (1 + 10 * 2) * noise, rtol=1e-5
    )
    assert asked == [2, 4]
    sometimes = guided_network(labelled, positive, negative, 10, lambda timestep: timestep > 5)
    assert np.allclose(sometimes(noise, 5), 3 * noise) and np.allclose(
        sometimes(noise, 6), 21 * noise, rtol=1e-5
    )
    assert asked == [2, 4, 2, 4]


def test_progress_counts_evaluations(noise):
    seen = []
    denoise(network, Pndm(SCHEDULE, 4), noise, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]
