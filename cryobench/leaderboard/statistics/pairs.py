"""Paired comparison of all rows of a table.

All solvers are given the same images, and the difficulty of an image is common to them. Therefore the differences of
two rows are tested image by image, for all pairs of rows. Testing only the leader against the k - 1 others is invalid,
because the leader was selected with the same data; the test suite simulates the resulting error rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cryobench.leaderboard.statistics.power import LEVEL, images_needed, images_to_test, reachable, smallest_p
from cryobench.leaderboard.statistics.signed_rank import holm, signed_rank
from cryobench.text import counted

RESAMPLES = 2_000
"""Bootstrap resamples of a difference; an end of its interval varies between seeds by 6% of its standard error."""

FEW_IMAGES = "no p-values"
"""The beginning of the reason of a comparison with too few images."""

BATCH = 4_000_000
"""Maximum number of differences held at once: 32 MiB."""


class Paired(NamedTuple):
    """Result for a table of k rows.

    pairs: columns [k (k - 1) / 2], in the order (0, 1), (0, 2) ... (k - 2, k - 1). first, second: the two rows.
    difference: mean over images of first - second, in the metric's unit. p: two-sided signed-rank test. p_holm:
    corrected over all pairs. images_needed: see `power.images_needed`. better: the row that is significantly better
    (p_holm <= 0.05, ranks and mean of the same sign), else -1.
    ranks: 1 + the number of significantly better rows. tied: whether another row has the same rank. Equal rank is not
    transitive: if A ~ B and B ~ C, A and C may differ, and the ranks are then 1, 1, 2. Ranks may also disagree with the
    means: a row with a lower mean may vary too much for any row to be significantly better.
    reason: why n images cannot make a difference significant, else ''. With a reason, p and p_holm are NaN, and ranks
    and tied are those of the means.
    """

    pairs: Mapping[str, np.ndarray]
    ranks: np.ndarray
    tied: np.ndarray
    reason: str


def compare_many(comparisons: Sequence[np.ndarray], *, higher: bool) -> list[Paired]:
    """Compare all pairs of rows of each array [rows, images]. higher: whether higher is better.

    Infinite values (the PSNR of an exact image) are allowed, NaN is not; equal infinities differ by 0. Arrays of the
    same shape are computed together, which does not change the results.
    """
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, values in enumerate(comparisons):
        shapes.setdefault(values.shape, []).append(place)
    found: dict[int, Paired] = {}
    for (n_rows, n_images), places in shapes.items():
        batch = max(1, BATCH // max(1, n_rows**2 * n_images // 2))
        for start in range(0, len(places), batch):
            batched = places[start : start + batch]
            results = _compare(np.stack([comparisons[place] for place in batched]), higher)
            found |= zip(batched, results, strict=True)
    return [found[place] for place in range(len(comparisons))]


def _compare(values: np.ndarray, higher: bool) -> list[Paired]:
    """The results for values [comparisons, rows, images]."""
    n_comparisons, n_rows, n_images = values.shape
    first, second = np.triu_indices(n_rows, 1)
    shape = n_comparisons, len(first)
    differences = difference(values[:, first], values[:, second]).reshape(n_comparisons * len(first), n_images)
    with np.errstate(invalid="ignore"):  # NaN where positive and negative infinities meet
        mean = differences.sum(axis=1) / n_images
    p = p_holm = np.full(len(mean), np.nan)
    better = np.full(shape, -1)
    reason = _reason(n_images, len(first))
    if reason:
        means = values.mean(axis=2) * (1 if higher else -1)
        ranks = 1 + (means[:, None, :] > means[:, :, None]).sum(axis=2)
    else:
        p, direction = signed_rank(differences)
        p_holm = holm(p.reshape(shape)).ravel()
        won = ((p_holm <= LEVEL) & (direction == np.sign(mean))).reshape(shape)
        of_first = (direction.reshape(shape) > 0) == higher
        better[won] = np.where(of_first, first, second)[won]
        ranks = 1 + _losses(won & ~of_first, first, n_rows) + _losses(won & of_first, second, n_rows)
    tied = (ranks[:, :, None] == ranks[:, None, :]).sum(axis=2) > 1
    needed = images_needed(differences, len(first))
    columns = {"difference": mean, "p": p, "p_holm": p_holm, "images_needed": needed, "better": better}
    columns = {name: column.reshape(shape) for name, column in columns.items()}
    return [
        Paired(
            {"first": first, "second": second} | {name: column[place] for name, column in columns.items()},
            ranks[place],
            tied[place],
            reason,
        )
        for place in range(n_comparisons)
    ]


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """one - other, where equal infinities differ by 0."""
    with np.errstate(invalid="ignore"):
        return np.where(one == other, 0.0, one - other)


def _reason(n_images: int, n_pairs: int) -> str:
    """Why no pair can be significant, or ''."""
    if not n_pairs or reachable(n_images, n_pairs):
        return ""
    least = min(1.0, smallest_p(n_images) * n_pairs)
    images, pairs = counted(n_images, "image"), counted(n_pairs, "pair")
    return (  # this text is in published tables
        f"{FEW_IMAGES}: with {images} and {pairs} of rows none can be below {least:.2g}, and {LEVEL} is wanted; "
        f"{images_to_test(n_pairs)} images would do"
    )


def _losses(lost: np.ndarray, row_of_pair: np.ndarray, n_rows: int) -> np.ndarray:
    """The number of pairs that each row lost, [comparisons, rows]. lost: [comparisons, pairs]."""
    return lost.astype(int) @ (row_of_pair[:, None] == np.arange(n_rows)).astype(int)
