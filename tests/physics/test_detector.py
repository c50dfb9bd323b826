"""Counts against scipy's Poisson distribution; the MTF at Nyquist."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare
from scipy.stats import poisson as distribution

from cryobench.numerics.philox import pixel_fractions
from cryobench.physics.detector import log_normal, mtf, poisson

SHAPE = (200, 250)


@pytest.fixture(scope="module")
def u() -> np.ndarray:
    return pixel_fractions(5, 1, 2, SHAPE)


def test_counts_invert_the_distribution(u):
    """Each count is the quantile of its fraction, also where fractions are extreme, and means are zero or large."""
    u = u.copy()
    u.flat[:2] = 2.0**-33, 1 - 2.0**-33
    mean = np.random.default_rng(0).gamma(0.5, 100.0, SHAPE)
    mean.flat[2:5] = 0.0
    np.testing.assert_array_equal(poisson(mean, u), np.maximum(distribution.ppf(u, mean), 0))


@pytest.mark.parametrize("mean", [0.4, 6.12, 1800.0])
def test_counts_are_poisson(mean, u):
    counts = poisson(np.full(SHAPE, mean), u)
    edges = np.unique(distribution.ppf(np.linspace(0.02, 0.98, 12), mean))
    observed = np.bincount(np.searchsorted(edges, counts.ravel()), minlength=len(edges) + 1)
    expected = counts.size * np.diff(distribution.cdf(edges, mean), prepend=0, append=1)
    assert chisquare(observed, expected).pvalue > 1e-3
    assert counts.mean() == pytest.approx(mean, abs=4 * np.sqrt(mean / counts.size))
    assert counts.var() == pytest.approx(mean, rel=0.03)


def test_a_count_depends_on_its_own_mean_and_fraction(u):
    mean = np.random.default_rng(1).uniform(0, 100, SHAPE)
    whole = poisson(mean, u)
    np.testing.assert_array_equal(whole[30:51, 7:100], poisson(mean[30:51, 7:100], u[30:51, 7:100]))


def test_the_mtf_has_its_value_at_nyquist():
    made = mtf((8, 10), 0.6)
    assert float(made[0, 0]) == 1
    assert float(made[4, 0]) == pytest.approx(0.6)
    assert float(made[0, 5]) == pytest.approx(0.6)
    assert float(made[4, 5]) == pytest.approx(0.36)
    assert float(made[2, 0]) == pytest.approx(0.6**0.25)


def test_sensitivities_have_mean_one():
    made = log_normal(np.random.default_rng(2).standard_normal(10**6), 0.3)
    assert made.mean() == pytest.approx(1, abs=1e-3)
    assert made.std() == pytest.approx(np.sqrt(np.expm1(0.09)), rel=0.01)
