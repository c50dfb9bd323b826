"""How each row of a leaderboard stands to the others of its comparison: rank, distance to the leader, floor, Pareto."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from cryobench.leaderboard.cells import per_image, texts
from cryobench.leaderboard.statistics.bootstrap import interval_ends
from cryobench.leaderboard.statistics.pairs import RESAMPLES, compare_many
from cryobench.record import COSTS

MOST_ROWS = 100
"""Rows of a comparison up to which all pairs are tested; the pairs grow with their square."""

BATCH = 100_000
"""Pairs tested at once, which bounds the memory that they take."""

YES, NO, UNCLEAR = "yes", "no", "unclear"
"""Whether a row beats the floor: significantly; its mean does not; its mean does, but that may be chance."""


@dataclass
class Standings:
    """A column each, one entry a row of the leaderboard; NaN or '' for a row that is not ranked.

    rank: 1 + the number of significantly better rows, or of better means where nothing is tested (`untested` says why).
    tied: whether another row has the same rank. diff_leader: the mean of the row minus that of the leader, the row
    with the best mean, with the 95% interval of the paired difference. p_holm: of that difference, corrected over all
    pairs of the comparison. images_needed: to see a difference of this size. beats_floor: `YES`, `NO` or `UNCLEAR`.
    """

    rank: np.ndarray
    tied: np.ndarray
    diff_leader: np.ndarray
    diff_leader_lo: np.ndarray
    diff_leader_hi: np.ndarray
    p_holm: np.ndarray
    images_needed: np.ndarray
    untested: np.ndarray
    beats_floor: np.ndarray

    @classmethod
    def none(cls, n_rows: int) -> Standings:
        numbers = {field.name: np.full(n_rows, np.nan) for field in fields(cls)}
        texts = {name: np.full(n_rows, "", dtype=object) for name in ("untested", "beats_floor")}
        return cls(**(numbers | texts | {"tied": np.zeros(n_rows, dtype=bool)}))


def standings(table: pa.Table, groups: np.ndarray, scores: np.ndarray, by: str, *, higher: bool) -> Standings:
    """The standings of rows that belong to `groups` and have `scores`, NaN where a row is not ranked.

    by: the metric whose values are tested image by image, or a cost, of which there is one number a cell.
    """
    found = Standings.none(table.num_rows)
    floors = table["floor"].to_numpy()
    rows = np.flatnonzero(~np.isnan(scores))
    if not len(rows):
        return found
    rows = rows[np.lexsort((-scores[rows] if higher else scores[rows], groups[rows]))]  # best first in each group
    _by_means(found, rows, groups[rows], scores[rows])
    if by in COSTS:
        found.untested[rows] = f"{by} is one number a cell: nothing to test"
        return found
    _floors_by_means(found, rows[floors[rows]], rows, groups, scores, higher=higher)
    values = _PerImage(table, by)
    to_test: list[tuple[np.ndarray, np.ndarray]] = []
    for members in np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1):
        paired = values.of(members)
        if paired is None:
            found.untested[members] = "rows do not have a value for each image: nothing to pair"
        elif len(members) > MOST_ROWS:
            found.untested[members] = f"pairs of more than {MOST_ROWS} rows are not tested: choose with --solvers"
        else:
            to_test.append((members, paired))
    for batch in _batches(to_test):
        results = compare_many([paired for _, paired in batch], higher=higher, intervals=False)
        for (members, _), tested in zip(batch, results, strict=True):
            found.rank[members], found.tied[members] = tested.ranks, tested.tied
            found.untested[members] = tested.why_not
            _against_leader(found, members[1:], tested.pairs.columns)
            _against_floor(found, members, tested.pairs.columns["better"], floors)
    _intervals(found, to_test)
    return found


def _by_means(found: Standings, rows: np.ndarray, groups: np.ndarray, scores: np.ndarray) -> None:
    """What means alone say of rows in order of their groups and scores."""
    first = np.append(True, groups[1:] != groups[:-1])
    better = first | np.append(True, scores[1:] != scores[:-1])
    places = np.arange(len(rows))
    leaders = np.maximum.accumulate(np.where(first, places, 0))
    found.rank[rows] = 1 + np.maximum.accumulate(np.where(better, places, 0)) - leaders
    found.tied[rows] = ~better | ~np.append(better[1:], True)
    with np.errstate(invalid="ignore"):  # equal infinities differ by 0
        differences = np.where(scores == scores[leaders], 0.0, scores - scores[leaders])
    found.diff_leader[rows[~first]] = differences[~first]


def _floors_by_means(
    found: Standings, floors: np.ndarray, rows: np.ndarray, groups: np.ndarray, scores: np.ndarray, *, higher: bool
) -> None:
    """What means alone say of the floor, of which the best row counts if a group has several."""
    of_group = np.full(groups.max() + 1, np.nan)
    of_group[groups[floors[::-1]]] = scores[floors[::-1]]  # the best is written last
    floor = of_group[groups[rows]]
    better = scores[rows] > floor if higher else scores[rows] < floor
    found.beats_floor[rows] = np.where(np.isnan(floor), "", np.where(better, UNCLEAR, NO))
    found.beats_floor[floors] = ""


def _batches(to_test: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Comparisons together that have about `BATCH` pairs."""
    batch, pairs = [], 0
    for rows, values in to_test:
        batch.append((rows, values))
        pairs += len(rows) * (len(rows) - 1) // 2
        if pairs >= BATCH:
            yield batch
            batch, pairs = [], 0
    yield batch


class _PerImage:
    """The values of a metric by row, the images in the order of their names whatever their order in a record is."""

    def __init__(self, table: pa.Table, metric: str):
        self._values, offsets = per_image(table, metric)
        self._starts, self._lengths = offsets[:-1], np.diff(offsets)
        self._images, distinct = texts(table, "images")
        self._sorting = [np.argsort(list(map(str, json.loads(images))), kind="stable") for images in distinct]

    def of(self, rows: np.ndarray) -> np.ndarray | None:
        """The values [rows, images] of rows of the same images; None where they do not have a value for each."""
        sorting = [self._sorting[images] for images in self._images[rows].tolist()]
        if list(map(len, sorting)) != self._lengths[rows].tolist():
            return None
        return self._values[self._starts[rows][:, None] + np.array(sorting)]


def _against_leader(found: Standings, others: np.ndarray, pairs: Mapping[str, np.ndarray]) -> None:
    """The leader is the first row, and the first pairs are its own."""
    own = slice(len(others))
    found.diff_leader[others] = 0.0 - pairs["difference"][own]
    found.p_holm[others] = pairs["p_holm"][own]
    found.images_needed[others] = np.where(pairs["images_needed"][own] < 0, np.nan, pairs["images_needed"][own])


def _against_floor(found: Standings, rows: np.ndarray, better: np.ndarray, floors: np.ndarray) -> None:
    """A row is above the floor where the pair of both says so."""
    for floor in np.flatnonzero(floors[rows])[:1]:
        above = np.arange(floor)  # only rows with better means come before it
        pairs = above * len(rows) - above * (above + 1) // 2 + floor - above - 1
        found.beats_floor[rows[above[better[pairs] == above]]] = YES


def _intervals(found: Standings, tested: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """The intervals of the differences to the leaders, all those of equally many images at once."""
    lengths: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for rows, values in tested:
        if len(rows) > 1 and values.shape[1] > 1:
            lengths.setdefault(values.shape[1], []).append((rows[1:], values))
    for members in lengths.values():
        rows = np.concatenate([others for others, _ in members])
        with np.errstate(invalid="ignore"):  # infinite values have no interval
            differences = np.concatenate([values[1:] - values[0] for _, values in members])
        finite = np.isfinite(differences).all(axis=1)
        if finite.any():
            ends = interval_ends(differences[finite], resamples=RESAMPLES)
            found.diff_leader_lo[rows[finite]], found.diff_leader_hi[rows[finite]] = ends


def pareto(groups: np.ndarray, scores: np.ndarray, costs: np.ndarray, *, higher: bool) -> list[bool | None]:
    """Whether a row is on the front of score against cost: no other row of its group is as good in both, and better in
    one. None where a row has no score or no cost."""
    quality = scores if higher else -scores
    rows = np.flatnonzero(~np.isnan(quality) & ~np.isnan(costs))
    rows = rows[np.lexsort((-quality[rows], costs[rows], groups[rows]))]  # cheap first, and of these the best
    found: list[bool | None] = [None] * len(groups)
    best = (-1, 0.0, 0.0)
    for row, *this in zip(*(array.tolist() for array in (rows, groups[rows], quality[rows], costs[rows])), strict=True):
        better = this[0] != best[0] or this[1] > best[1]
        best = tuple(this) if better else best
        found[row] = better or tuple(this) == best
    return found
