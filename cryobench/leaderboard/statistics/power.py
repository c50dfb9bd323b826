"""The number of images that a paired comparison requires. Depends on numpy only."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

LEVEL = 0.05
"""Family-wise error rate: the probability of one or more false differences in a comparison."""

POWER = 0.8
"""Probability of detecting a difference of the stated size."""

MAX_IMAGES = 1e9
"""Larger numbers of images are not reported."""

EFFICIENCY = 3 / math.pi
"""Of the signed-rank test relative to the t test, for normal differences (Hodges and Lehmann 1956)."""


def smallest_p(n_images: int) -> float:
    """The smallest two-sided p of a signed-rank test of n images, when all differences have the same sign."""
    return min(1.0, 2.0 ** (1 - n_images))


def reachable(n_images: int, tests: int) -> bool:
    """Whether any of `tests` tests can be significant after Holm's correction."""
    return smallest_p(n_images) * tests <= LEVEL


def images_to_test(tests: int) -> int:
    """The fewest images for which `reachable` holds."""
    return math.ceil(1 + math.log2(max(tests, 1) / LEVEL))


def images_needed(differences: np.ndarray, tests: int) -> np.ndarray:
    """Images [pairs] required to detect a mean difference of the size observed in differences [pairs, images].

    NaN for a difference that is 0 or infinite, for a single image, and above `MAX_IMAGES`. Power `POWER`, two-sided
    level `LEVEL` / tests: the first step of Holm's correction. With d the mean difference over its standard deviation,

        n = ((z_a + z_b)^2 / d^2 + z_a^2 / 2) / EFFICIENCY,

    Guenther's approximation for the t test (The American Statistician 35 (1981) 243), divided by the asymptotic
    relative efficiency of the signed-rank test for normal differences (heavier tails require fewer images), and at
    least `images_to_test`. Simulated powers are 0.79 to 0.82. With the fewest images that can be tested, all
    differences must have the same sign and the power may be lower: 0.66 for d = 1.5 and 6 images. The result is as
    uncertain as the observed size.
    """
    level, power = (-NormalDist().inv_cdf(tail) for tail in (LEVEL / max(tests, 1) / 2, 1 - POWER))
    if differences.shape[1] < 2:
        return np.full(len(differences), math.nan)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = differences.mean(axis=1)
        variance = differences.var(axis=1, ddof=1)
        n_images = np.ceil(((level + power) ** 2 * variance / mean**2 + level**2 / 2) / EFFICIENCY)
    n_images = np.maximum(n_images, images_to_test(tests))
    return np.where((n_images <= MAX_IMAGES) & (mean != 0), n_images, math.nan)
