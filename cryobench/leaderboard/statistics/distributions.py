"""Tails and quantiles that the tests of a leaderboard need. numpy alone: scipy.stats takes a second to import."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

_GRID = np.linspace(-9.0, 9.0, 1801)
"""Where the trapezoid rule, which for such smooth functions is exact to rounding, takes the normal density."""


def normal_tail(z: np.ndarray) -> np.ndarray:
    """P(Z > z) of a standard normal Z, for each z of an array of one dimension."""
    return np.array([math.erfc(value / math.sqrt(2)) / 2 for value in z.tolist()])


def chi_squared_tail(x: float, degrees: int) -> float:
    """P(X > x) of chi-squared with so many degrees of freedom, from 1.

    By Q(a + 1, u) = Q(a, u) + u^a e^-u / Gamma(a + 1) of the regularised upper incomplete gamma function, u = x / 2,
    from Q(1/2, u) = erfc(sqrt u) or Q(1, u) = e^-u (Abramowitz and Stegun 6.5.21).
    """
    u = x / 2
    if u <= 0:
        return 1.0
    tail = math.erfc(math.sqrt(u)) if degrees % 2 else math.exp(-u)
    for twice_a in range(2 - degrees % 2, degrees, 2):
        a = twice_a / 2
        tail += math.exp(a * math.log(u) - u - math.lgamma(a + 1))
    return min(tail, 1.0)


@lru_cache
def studentized_range_quantile(p: float, groups: int) -> float:
    """The p-quantile of the range of so many standard normal variables, from 2: infinitely many degrees of freedom.

    By bisection of P(range < q) = k int phi(z) (Phi(z + q) - Phi(z))^(k - 1) dz.
    """
    below = 1 - normal_tail(_GRID)
    density = np.exp(-(_GRID**2) / 2) / math.sqrt(2 * math.pi)
    step = _GRID[1] - _GRID[0]

    def probability(q: float) -> float:
        between = 1 - normal_tail(_GRID + q) - below
        return float(groups * step * (density * between ** (groups - 1)).sum())

    low, high = 0.0, 40.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < p else (low, middle)
    return (low + high) / 2
