"""Conditional diffusion: the schedules by closed formulas, training and sampling steps from the papers' equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cryobench.errors import ParameterError
from cryobench.networks.refinement import (
    SAMPLING,
    TRAINING,
    Levels,
    drawn_level,
    noise_of,
    noisy,
    respaced,
    sample,
    sampling_step,
    velocity,
)


@pytest.mark.parametrize(("levels", "first", "last"), [(TRAINING, 1e-6, 0.01), (SAMPLING, 1e-4, 0.09)])
def test_gamma_is_the_product_of_one_minus_beta(levels: Levels, first, last):
    found = levels.gammas()
    T = {TRAINING: 2000, SAMPLING: 1000}[levels]
    assert len(found) == T + 1
    assert found[0] == 1
    for t in (1, 2, 10, T // 2, T):
        betas = [first + (last - first) * s / (T - 1) for s in range(t)]
        assert float(found[t]) == pytest.approx(math.exp(math.fsum(math.log1p(-beta) for beta in betas)), rel=1e-12)


def test_levels_are_uniform_between_neighbours():
    gammas = torch.tensor([1.0, 0.8, 0.5, 0.1], dtype=torch.float64)
    step, between = torch.tensor([0.0, 0.34, 0.99, 1.0]), torch.tensor([0.5, 0.0, 1.0, 0.25])
    assert drawn_level(step, between, gammas).tolist() == pytest.approx([0.9, 0.8, 0.1, 0.4])


@pytest.mark.parametrize("spacing", ["log", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 20, 1000])
def test_fewer_steps_still_begin_in_noise_and_end_at_the_image(steps, spacing):
    gammas = SAMPLING.gammas()
    found = respaced(gammas, steps, spacing)
    assert len(found) == steps + 1
    assert found[0] == 1
    assert found[-1] <= 1e-4
    assert (found.diff() < 0).all()
    if steps == 1000 or spacing == "linear":
        assert set(found.tolist()) <= set(gammas.tolist())
        assert found[-1] == gammas[-1]
    elif steps > 1:
        ratios = (1 / found[1:] - 1).sqrt().log().diff()
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-6, atol=0)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ParameterError, match=f"steps must be 1 to 1000, the published number, got {steps}"):
        respaced(SAMPLING.gammas(), steps)


def test_noise_is_added_to_the_stated_level():
    x, noise, gamma = torch.tensor([[2.0], [2.0]]), torch.tensor([[3.0], [3.0]]), torch.tensor([0.25, 1.0])
    assert noisy(x, noise, gamma).flatten().tolist() == pytest.approx([0.5 * 2 + 0.75**0.5 * 3, 2.0], rel=1e-6)


def test_a_sampling_step_is_that_of_the_posterior():
    """Palette (Saharia et al. 2022), eqs. 5 to 7, with beta_t = 1 - gamma_t / gamma_{t-1}, in NumPy's float64."""
    rng = np.random.default_rng(0)
    y, eps, z = rng.normal(size=(3, 5))
    gammas = respaced(SAMPLING.gammas(), 20).numpy()
    for t in (20, 10, 3):
        gamma, before = gammas[t], gammas[t - 1]
        alpha = gamma / before
        x0 = np.clip((y - np.sqrt(1 - gamma) * eps) / np.sqrt(gamma), -1, 1)
        mean = np.sqrt(before) * (1 - alpha) / (1 - gamma) * x0 + np.sqrt(alpha) * (1 - before) / (1 - gamma) * y
        expected = mean + np.sqrt((1 - alpha) * (1 - before) / (1 - gamma)) * z
        found = sampling_step(
            *(torch.from_numpy(a) for a in (y, eps)), float(gamma), float(before), torch.from_numpy(z)
        )
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(("steps", "spacing", "ratio"), [(1000, "log", 0.93), (20, "log", 0.80), (20, "linear", 0.27)])
def test_few_steps_make_samples_of_a_gaussian_too_alike(steps, spacing, ratio):
    """The exact predictor of x ~ N(m, s^2): E[eps | y] = sqrt(1 - g) (y - sqrt(g) m) / (g s^2 + 1 - g). The ratios of
    deviations are those of a linear recursion of the variance: y' = a y + b + c z, here computed apart."""
    m, s = 0.2, 0.1
    variance = 1.0
    levels = respaced(SAMPLING.gammas(), steps, spacing).tolist()
    for following, gamma in zip(levels[-2::-1], levels[:0:-1], strict=True):
        alpha, slope = gamma / following, gamma**0.5 * s**2 / (gamma * s**2 + 1 - gamma)  # of E[x | y]
        a = (following**0.5 * (1 - alpha) * slope + alpha**0.5 * (1 - following)) / (1 - gamma)
        variance = a**2 * variance + (1 - alpha) * (1 - following) / (1 - gamma)
    assert variance**0.5 / s == pytest.approx(ratio, abs=0.01)
    draw = torch.Generator().manual_seed(0)

    def predict(y, gamma):
        return (1 - gamma) ** 0.5 * (y - gamma**0.5 * m) / (gamma * s**2 + 1 - gamma)

    seen = []
    found = sample(predict, lambda: torch.randn(20_000, generator=draw, dtype=torch.float64),
                   respaced(SAMPLING.gammas(), steps, spacing), lambda *now: seen.append(now))  # fmt: skip
    assert float(found.mean()) == pytest.approx(m, abs=4 * s / 20_000**0.5)
    assert float(found.std()) == pytest.approx(variance**0.5, rel=0.03)
    assert seen[-1] == (steps, steps)


def test_the_noise_of_a_velocity_is_the_noise():
    x, noise = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for gamma in (0.999, 0.3, 1e-4):
        levels = torch.full((3,), gamma, dtype=torch.float64)
        v = velocity(x, noise, levels)
        torch.testing.assert_close(noise_of(v, noisy(x, noise, levels), gamma), noise)
        angle = math.acos(gamma**0.5)
        torch.testing.assert_close(v, math.cos(angle) * noise - math.sin(angle) * x)
