"""The Wilcoxon signed-rank test of many pairs at once, exact for few images; Holm's correction.

Under the null hypothesis the difference of an image is as likely as its negative, so the null distribution is that of
random signs. Conditional on the sizes of the differences, the test is exact for any distribution, with ties and zeros.

Wilcoxon, Biometrics Bulletin 1 (1945) 80. Zeros as in Pratt, JASA 54 (1959) 655: they are ranked and carry no sign.
(If they are dropped before ranking, a difference can become less significant as every image moves in its direction.)
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

EXACT_UP_TO = 200
"""Images up to which the null distribution is exact. Above, it is normal, with the variance of the midranks (ties,
zeros) and a continuity correction of half the step between possible values."""


def signed_rank(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided p and direction [pairs] of the signed-rank test of differences [pairs, images] against zero.

    direction: sign of W+ - W-. Infinite differences have the highest ranks. p = 1 if all differences are 0. Differences
    must not be NaN.
    """
    ranks = midranks(np.abs(differences))
    signed = np.sign(differences) * ranks
    balance = signed.sum(axis=1)  # W+ - W-
    doubled = np.rint(2 * np.abs(signed)).astype(int)  # midranks are multiples of a half; a zero has rank 0
    if differences.shape[1] <= EXACT_UP_TO:
        p = _exact(balance, doubled)
    else:
        from scipy.special import ndtr

        deviation = np.sqrt(np.maximum(np.square(signed).sum(axis=1), 1))
        # W+ - W- moves in steps of twice the greatest common divisor of the ranks: 2 without ties, more with few ranks
        half_step = np.gcd.reduce(doubled, axis=1) / 2
        p = 2 * ndtr(-np.maximum(np.abs(balance) - half_step, 0) / deviation)
    return p, np.sign(balance).astype(int)


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks [rows, columns] along each row, 1 the smallest; equal values share the mean of their ranks."""
    n_columns = values.shape[1]
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    starts = np.ones(values.shape, dtype=bool)  # of runs of equal values
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = np.roll(starts, -1, axis=1)
    first = np.maximum.accumulate(np.where(starts, np.arange(n_columns), 0), axis=1)
    last = np.minimum.accumulate(np.where(ends, np.arange(n_columns), n_columns)[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, 1 + (first + last) / 2, axis=1)
    return ranks


def holm(p: np.ndarray) -> np.ndarray:
    """p-values [..., tests] corrected for their number along the last axis: the family-wise error is at most the level.

    Holm, Scandinavian Journal of Statistics 6 (1979) 65.
    """
    n_tests = p.shape[-1]
    order = np.argsort(p, axis=-1)
    stepped = np.take_along_axis(p, order, axis=-1) * np.arange(n_tests, 0, -1)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, np.minimum(np.maximum.accumulate(stepped, axis=-1), 1), axis=-1)
    return corrected


def _exact(balance: np.ndarray, doubled: np.ndarray) -> np.ndarray:
    """Two-sided p of W+ - W- over all signs of the ranks, which are given twice their size [pairs, images]."""
    n_images = doubled.shape[1]
    total = doubled.sum(axis=1)
    larger = (total + np.rint(2 * np.abs(balance)).astype(int)) // 2  # max(W+, W-), doubled
    squares = np.square(doubled).sum(axis=1)
    untied = squares == 4 * sum(rank**2 for rank in range(1, n_images + 1))  # ties and zeros make the sum less
    p = np.empty(len(doubled))
    p[untied] = 2 * upper_tail(tuple(range(1, n_images + 1)))[larger[untied] // 2]
    for pair in np.flatnonzero(~untied):
        step = max(np.gcd.reduce(doubled[pair]), 1)
        p[pair] = 2 * upper_tail(tuple(sorted((doubled[pair] // step).tolist())))[larger[pair] // step]
    return np.minimum(p, 1)


@lru_cache(maxsize=256)  # up to 0.3 MB each
def upper_tail(ranks: tuple[int, ...]) -> np.ndarray:
    """P(sum >= s) for s = 0 ... sum(ranks), each rank being in the sum with probability 1/2. Ranks are integers."""
    density = np.zeros(sum(ranks) + 1)
    density[0] = 1
    end = 1
    for rank in ranks:
        end += rank
        density[:end] /= 2
        density[rank:end] += density[: end - rank].copy()
    return np.cumsum(density[::-1])[::-1]
