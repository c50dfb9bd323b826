"""Which of the rows of a comparison differ, paired by image. Needs numpy alone.

Solvers see the same images, and how hard an image is moves all of them together: so what is tested is the difference of
two rows image by image, over all pairs of rows. (Testing against the leader alone, with k - 1 tests to correct for, is
wrong: the leader was chosen by the same data. The tests simulate how often that errs.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import numpy as np

from cryobench.errors import ParameterError
from cryobench.leaderboard.statistics.bootstrap import interval_ends
from cryobench.leaderboard.statistics.power import LEVEL, images_needed, images_to_test, least_p, reachable
from cryobench.leaderboard.statistics.signed_rank import holm, signed_rank

RESAMPLES = 2_000
"""Bootstrap resamples of a difference; an end of its interval varies by 6% of its standard error from seed to seed."""

BATCH = 4_000_000
"""Differences held at once: 32 MiB."""


class Pair(NamedTuple):
    """Two rows, by number; first < second. None is what cannot be told.

    difference: mean over images of first - second, in the metric's unit; positive where first has the higher values,
    whichever way is better. lo, hi: its 95% bootstrap interval, not corrected for the number of pairs; None for one
    image and infinite differences. p: two-sided signed-rank test. p_holm: corrected over all tested pairs of the
    comparison. images_needed: for a difference of the observed size, see `planning.images_needed`.
    better: the row that is significantly better: p_holm <= 0.05, ranks and mean pointing the same way. Else None.
    """

    first: int
    second: int
    difference: float | None = None
    lo: float | None = None
    hi: float | None = None
    p: float | None = None
    p_holm: float | None = None
    images_needed: int | None = None
    better: int | None = None


class Pairs(Sequence[Pair]):
    """Pairs as arrays by column [pairs], NaN or -1 for what cannot be told; each is a `Pair` when it is asked for."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["first"])

    @overload
    def __getitem__(self, place: int) -> Pair: ...
    @overload
    def __getitem__(self, place: slice) -> Pairs: ...
    def __getitem__(self, place: int | slice) -> Pair | Pairs:
        if isinstance(place, slice):
            return Pairs({name: column[place] for name, column in self.columns.items()})
        return Pair(*(_plain(self.columns[name][place].item()) for name in Pair._fields))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


@dataclass(frozen=True)
class Paired:
    """The pairs of rows of a comparison, all k (k - 1) / 2 of them: (0, 1), (0, 2) ... (k - 2, k - 1).

    ranks: 1 + the number of rows that are significantly better; None for a row without a mean. tied: whether another
    row has the same rank, to be shown as "1=". Rows of one rank are not shown to be equal, and not even to be
    indistinguishable: of A ~ B ~ C the outer two may differ, and then the ranks are 1, 1, 2. Nor need a rank follow the
    mean: of two rows the one with the lower mean may vary too much for any row to be shown better than it.
    why_not: a sentence where n images cannot make a difference significant; there are no p-values then, and ranks and
    `tied` are those of the means alone. '' where there are p-values. left_out: rows without a number for every image
    (the rows whose rank is None), whose pairs are not tested and do not count in Holm's correction.
    """

    pairs: Pairs
    ranks: list[int | None]
    tied: list[bool]
    why_not: str = ""
    left_out: list[int] = field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        """What a reader must be told, one sentence each."""
        untested = f"{len(self.left_out)} of the rows not tested: no number for every image" if self.left_out else ""
        return [remark for remark in (self.why_not, untested) if remark]


def compare(values: np.ndarray, *, higher: bool, seed: int = 0) -> Paired:
    """What the values [rows, images] of one metric say of each pair of rows. higher: whether higher is better.

    NaN: no number for that image. Infinite values (the PSNR of an exact image) are numbers; equal ones differ by 0.
    Raises `ParameterError` for values that are not two-dimensional.
    """
    return compare_many([values], higher=higher, seed=seed)[0]


def compare_many(
    comparisons: Sequence[np.ndarray], *, higher: bool, seed: int = 0, intervals: bool = True
) -> list[Paired]:
    """`compare` of each array [rows, images], those of one shape together; the result is the same.

    intervals: whether to find the intervals of the differences, which takes most of the time.
    """
    shapes: dict[tuple[int, int], list[tuple[int, np.ndarray, list[int]]]] = {}
    for place, values in enumerate(comparisons):
        values, kept = _with_means(np.asarray(values, dtype=float))
        shapes.setdefault(values.shape, []).append((place, values, kept))
    found: dict[int, Paired] = {}
    for (n_rows, n_images), members in shapes.items():
        batch = max(1, BATCH // max(1, n_rows**2 * n_images // 2))
        for start in range(0, len(members), batch):
            places, values, kept = zip(*members[start : start + batch], strict=True)
            tested = _tested(np.stack(values), higher, seed, intervals)
            for place, result, rows in zip(places, tested, kept, strict=True):
                found[place] = _with_left_out(result, rows, len(comparisons[place]))
    return [found[place] for place in range(len(comparisons))]


def _with_means(values: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The rows that have a mean, and which these are."""
    if values.ndim != 2:
        raise ParameterError(f"values must be [rows, images], and have the shape {list(values.shape)}")
    if not values.size:
        return values[:0], []
    with np.errstate(invalid="ignore"):
        kept = ~np.isnan(values.sum(axis=1))
    return values[kept], np.flatnonzero(kept).tolist()


def _with_left_out(paired: Paired, kept: Sequence[int], n_rows: int) -> Paired:
    """The result for the rows `kept` of n_rows, told of all of them."""
    if len(kept) == n_rows:
        return paired
    first, second = np.triu_indices(n_rows, 1)
    tested = np.isin(first, kept) & np.isin(second, kept)
    columns = {name: np.full(len(first), -1 if column.dtype.kind == "i" else math.nan)
               for name, column in paired.pairs.columns.items()}  # fmt: skip
    for name, column in paired.pairs.columns.items():
        columns[name][tested] = column
    better = columns["better"]
    better[better >= 0] = np.array(kept)[better[better >= 0].astype(int)]
    pairs = Pairs(columns | {"first": first, "second": second})
    ranks: list[int | None] = [None] * n_rows
    tied = [False] * n_rows
    for row, rank, shared in zip(kept, paired.ranks, paired.tied, strict=True):
        ranks[row], tied[row] = rank, shared
    return Paired(pairs, ranks, tied, paired.why_not, sorted(set(range(n_rows)) - set(kept)))


def _tested(values: np.ndarray, higher: bool, seed: int, intervals: bool) -> list[Paired]:
    """The results for values [comparisons, rows, images] of rows that all have means."""
    n_comparisons, n_rows, n_images = values.shape
    first, second = np.triu_indices(n_rows, 1)
    shape = n_comparisons, len(first)
    differences = difference(values[:, first], values[:, second]).reshape(n_comparisons * len(first), n_images)
    mean = _means(differences)
    lo = hi = p = p_holm = np.full(len(mean), math.nan)
    if intervals:
        lo, hi = interval_ends(differences, resamples=RESAMPLES, seed=seed)
    better = np.full(shape, -1)
    why_not = _why_not(n_images, len(first))
    if why_not:
        ranks = _ranks_by_mean(values, higher)
    else:
        p, direction = signed_rank(differences)
        p_holm = holm(p.reshape(shape)).ravel()
        won = ((p_holm <= LEVEL) & (direction == np.sign(mean))).reshape(shape)
        of_first = (direction.reshape(shape) > 0) == higher
        better[won] = np.where(of_first, first, second)[won]
        ranks = 1 + _losses(won & ~of_first, first, n_rows) + _losses(won & of_first, second, n_rows)
    tied = (ranks[:, :, None] == ranks[:, None, :]).sum(axis=2) > 1
    needed = np.nan_to_num(images_needed(differences, len(first)), nan=-1).astype(int)
    tested = {"difference": mean, "lo": lo, "hi": hi, "p": p, "p_holm": p_holm, "images_needed": needed}
    columns = {name: column.reshape(shape) for name, column in tested.items()} | {"better": better}
    return [
        Paired(
            Pairs({"first": first, "second": second} | {name: column[place] for name, column in columns.items()}),
            ranks[place].tolist(),
            tied[place].tolist(),
            why_not,
        )
        for place in range(n_comparisons)
    ]


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """one - other, where equal infinities differ by 0."""
    with np.errstate(invalid="ignore"):
        return np.where(one == other, 0.0, one - other)


def _means(differences: np.ndarray) -> np.ndarray:
    """Mean differences [pairs]; NaN where positive and negative infinities meet."""
    with np.errstate(invalid="ignore"):
        return differences.sum(axis=1) / max(1, differences.shape[1])


def _why_not(n_images: int, n_pairs: int) -> str:
    """Why no pair can be significant, or ''."""
    if not n_pairs or reachable(n_images, n_pairs):
        return ""
    least = min(1.0, least_p(n_images) * n_pairs)
    return (
        f"no p-values: with {_counted(n_images, 'image')} and {_counted(n_pairs, 'pair')} of rows none can be below "
        f"{least:.2g}, and {LEVEL} is wanted; {images_to_test(n_pairs)} images would do"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _losses(lost: np.ndarray, row_of_pair: np.ndarray, n_rows: int) -> np.ndarray:
    """How many of the pairs [comparisons, pairs] each row lost, [comparisons, rows]."""
    return lost.astype(int) @ (row_of_pair[:, None] == np.arange(n_rows)).astype(int)


def _ranks_by_mean(values: np.ndarray, higher: bool) -> np.ndarray:
    """1 + the number of rows with a better mean, [comparisons, rows]."""
    means = values.mean(axis=2) * (1 if higher else -1)
    return 1 + (means[:, None, :] > means[:, :, None]).sum(axis=2)


def _plain(number: float | int) -> Any:
    """An entry of a column for `Pair`: None for NaN and, among whole numbers, for -1."""
    return None if math.isnan(number) or (isinstance(number, int) and number < 0) else number
