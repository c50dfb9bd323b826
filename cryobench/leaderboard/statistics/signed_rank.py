"""The Wilcoxon signed-rank test of many pairs at once, exact for few images; Holm's correction.

The null distribution is that of random signs: under no difference each image's difference is as likely as its negative.
Conditional on the sizes of the differences the test is exact for any distribution, ties and zeros included.

Wilcoxon, Biometrics Bulletin 1 (1945) 80. Zeros as in Pratt, JASA 54 (1959) 655: they are ranked and carry no sign.
(If they are dropped before ranking, a difference can become less significant as every image moves in its direction.)
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

EXACT_UP_TO = 50
"""Images up to which the null distribution is exact; above, normal with the variance of the midranks (ties, zeros)."""


def signed_rank(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided p and direction [pairs] of the signed-rank test of differences [pairs, images] against zero.

    direction: sign of W+ - W-. Infinite differences have the highest ranks. p = 1 where all differences are 0. No
    difference may be NaN.
    """
    ranks = midranks(np.abs(differences))
    signed = np.sign(differences) * ranks
    balance = signed.sum(axis=1)  # W+ - W-
    if differences.shape[1] <= EXACT_UP_TO:
        p = _exact(balance, np.where(differences == 0, 0, ranks))
    else:
        from scipy.special import ndtr

        deviation = np.sqrt(np.maximum(np.square(signed).sum(axis=1), 1))
        p = 2 * ndtr(-np.maximum(np.abs(balance) - 1, 0) / deviation)  # with the continuity correction
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


def _exact(balance: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Two-sided p of W+ - W- over all signs of the ranks [pairs, images]; a zero has rank 0."""
    n_images = ranks.shape[1]
    doubled = np.rint(2 * ranks).astype(int)  # midranks are multiples of a half
    total = doubled.sum(axis=1)
    larger = (total + np.rint(2 * np.abs(balance)).astype(int)) // 2  # max(W+, W-), doubled
    squares = np.square(doubled).sum(axis=1)
    untied = squares == 4 * sum(rank**2 for rank in range(1, n_images + 1))  # ties and zeros make the sum less
    p = np.empty(len(ranks))
    p[untied] = 2 * upper_tail(tuple(range(2, 2 * n_images + 2, 2)))[larger[untied]]
    for pair in np.flatnonzero(~untied):
        p[pair] = 2 * upper_tail(tuple(sorted(doubled[pair].tolist())))[larger[pair]]
    return np.minimum(p, 1)


@lru_cache(maxsize=4096)
def upper_tail(ranks: tuple[int, ...]) -> np.ndarray:
    """P(sum >= s) for s = 0 ... sum(ranks), each rank being in the sum with probability 1/2. Ranks are integers."""
    density = np.zeros(sum(ranks) + 1)
    density[0] = 1
    for rank in ranks:
        with_it = np.zeros_like(density)
        with_it[rank:] = density[: len(density) - rank]
        density = (density + with_it) / 2
    return np.cumsum(density[::-1])[::-1]
