"""The tails of the distributions that the tests use, against closed formulas and published tables."""

import math

import numpy as np
import pytest
import scipy.special

from cryobench.leaderboard.statistics.friedman import critical_difference, friedman
from cryobench.leaderboard.statistics.signed_rank import signed_rank

LEVEL = 0.05


@pytest.mark.parametrize("n_images", [201, 300])
def test_the_normal_tail_is_the_complementary_error_function(n_images):
    signs = np.array([[1] * positive + [-1] * (n_images - positive) for positive in range(n_images + 1)])
    p, _ = signed_rank(signs * np.arange(1.0, n_images + 1))
    ranks = np.arange(1, n_images + 1)
    z = np.maximum(np.abs((signs * ranks).sum(axis=1)) - 1, 0) / math.sqrt((ranks**2).sum())
    assert p == pytest.approx([math.erfc(value / math.sqrt(2)) for value in z], rel=1e-9, abs=0)


@pytest.mark.parametrize("n_solvers", [2, 3, 4, 9, 10, 30])
def test_the_chi_squared_tail_is_its_finite_sum(n_solvers):
    """Q(a + 1, u) = Q(a, u) + u^a e^-u / Gamma(a + 1), Q(1/2, u) = erfc(sqrt u), Q(1, u) = e^-u; Abramowitz and Stegun
    6.5.21."""
    rng = np.random.default_rng(n_solvers)
    for shift in (0.0, 0.1, 0.5, 3.0):
        scores = rng.normal(size=(12, n_solvers)) + shift * np.arange(n_solvers)
        statistic, p = friedman(scores.argsort(axis=1).argsort(axis=1) + 1.0)
        degrees, u = n_solvers - 1, statistic / 2
        tail = math.erfc(math.sqrt(u)) if degrees % 2 else math.exp(-u)
        for twice_a in range(2 - degrees % 2, degrees, 2):
            tail += math.exp(twice_a / 2 * math.log(u) - u - math.lgamma(twice_a / 2 + 1))
        assert p == pytest.approx(tail, rel=1e-9, abs=0)


@pytest.mark.parametrize("n_solvers", [2, 3, 10, 50])
def test_the_studentized_range_is_its_integral(n_solvers):
    """P(range < q) = k int phi(z) (Phi(z + q) - Phi(z))^(k - 1) dz; the trapezoid rule is exact to rounding here."""
    q = critical_difference(n_solvers, 1) * math.sqrt(2) / math.sqrt(n_solvers * (n_solvers + 1) / 6)
    z = np.linspace(-9, 9, 1801)

    def probability(q: float) -> float:
        between = scipy.special.ndtr(z + q) - scipy.special.ndtr(z)
        return n_solvers * 0.01 * (np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * between ** (n_solvers - 1)).sum()

    assert probability(q * (1 - 1e-9)) < 1 - LEVEL < probability(q * (1 + 1e-9))
