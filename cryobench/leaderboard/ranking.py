"""Rank, difference to the leader, comparison with the floor and Pareto front of the rows of each comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cryobench.leaderboard.cells import VALUES, per_image, texts
from cryobench.leaderboard.statistics.bootstrap import interval_ends
from cryobench.leaderboard.statistics.letters import letters
from cryobench.leaderboard.statistics.pairs import RESAMPLES, Paired, compare_many
from cryobench.record import COSTS

MAX_ROWS = 100
"""Maximum number of rows of a comparison in which pairs are tested; the number of pairs grows quadratically."""

YES, NO, UNCLEAR = "yes", "no", "unclear"
"""Whether a row beats the floor. YES: significantly; NO: its mean is not better; UNCLEAR: its mean is better, but not
significantly."""


Standings = dict[str, np.ndarray]


def standings(table: pa.Table, groups: np.ndarray, scores: np.ndarray, by: str, *, higher: bool) -> Standings:
    """Columns [rows] of a leaderboard whose rows belong to `groups` and have `scores` (NaN: the row is not ranked).

    by: a metric, tested image by image, or a cost, which is one number per cell. Rows that are not ranked have NaN or
    ''.

    rank: 1 + the number of significantly better rows, or of better means if nothing is tested (`untested` is the
    reason). tied: whether another row has the same rank. letters: two rows share one if and only if they do not differ
    significantly ('' where nothing is tested, or all rows differ). diff_leader: the mean of the row minus that of the
    leader (the best mean), with the 95% interval of the paired difference. p_holm: of that difference, corrected over
    all pairs of the comparison. images_needed: to detect a difference of this size. beats_floor: `YES`, `NO` or
    `UNCLEAR`.
    """
    names = ("rank", "diff_leader", "diff_leader_lo", "diff_leader_hi", "p_holm", "images_needed")
    found = {name: np.full(table.num_rows, np.nan) for name in names}
    found |= {name: np.full(table.num_rows, "", dtype=object) for name in ("untested", "beats_floor", "letters")}
    found["tied"] = np.zeros(table.num_rows, dtype=bool)
    floors = table["floor"].to_numpy()
    rows = np.flatnonzero(~np.isnan(scores))
    if not len(rows):
        return found
    rows = rows[np.lexsort((-scores[rows] if higher else scores[rows], groups[rows]))]  # best first in each group
    _by_means(found, rows, groups[rows], scores[rows])
    of_cells = f"{by} is one number per cell: not tested"
    if by in COSTS:
        found["untested"][rows] = of_cells
        return found
    _floors_by_means(found, rows[floors[rows]], rows, groups, scores, higher=higher)
    if VALUES + by not in table.column_names:
        found["untested"][rows] = of_cells
        return found
    values = _PerImage(table, by)
    to_test: list[tuple[np.ndarray, np.ndarray]] = []
    for members in np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1):
        paired = values.of(members)
        if paired is None:
            found["untested"][members] = "not tested: some rows do not have a value for each image"
        elif len(members) > MAX_ROWS:
            found["untested"][members] = f"not tested: more than {MAX_ROWS} rows; choose with --solvers"
        else:
            to_test.append((members, paired))
    results = compare_many([paired for _, paired in to_test], higher=higher)
    for (members, _), tested in zip(to_test, results, strict=True):
        others = members[1:]
        own = slice(len(others))  # the leader is the first row, and its pairs come first
        found["rank"][members], found["tied"][members] = tested.ranks, tested.tied
        found["untested"][members] = tested.reason
        found["letters"][members] = _letters(tested)
        found["diff_leader"][others] = 0.0 - tested.pairs["difference"][own]
        for name in ("p_holm", "images_needed"):
            found[name][others] = tested.pairs[name][own]
        for floor in np.flatnonzero(floors[members])[:1]:
            above = (tested.pairs["second"] == floor) & (tested.pairs["better"] == tested.pairs["first"])
            found["beats_floor"][members[tested.pairs["first"][above]]] = YES  # better means come before the floor
    _intervals(found, to_test)
    return found


def _by_means(found: Standings, rows: np.ndarray, groups: np.ndarray, scores: np.ndarray) -> None:
    """Set ranks and differences from means alone, for rows sorted by group and score."""
    first = np.append(True, groups[1:] != groups[:-1])
    better = first | np.append(True, scores[1:] != scores[:-1])
    places = np.arange(len(rows))
    leaders = np.maximum.accumulate(np.where(first, places, 0))
    found["rank"][rows] = 1 + np.maximum.accumulate(np.where(better, places, 0)) - leaders
    found["tied"][rows] = ~better | ~np.append(better[1:], True)
    with np.errstate(invalid="ignore"):  # equal infinities differ by 0
        differences = np.where(scores == scores[leaders], 0.0, scores - scores[leaders])
    found["diff_leader"][rows[~first]] = differences[~first]


def _floors_by_means(
    found: Standings, floors: np.ndarray, rows: np.ndarray, groups: np.ndarray, scores: np.ndarray, *, higher: bool
) -> None:
    """`beats_floor` from means alone; if a group has several floors, the best is used."""
    of_group = np.full(groups.max() + 1, np.nan)
    of_group[groups[floors[::-1]]] = scores[floors[::-1]]  # the best is written last
    floor = of_group[groups[rows]]
    better = scores[rows] > floor if higher else scores[rows] < floor
    found["beats_floor"][rows] = np.where(np.isnan(floor), "", np.where(better, UNCLEAR, NO))
    found["beats_floor"][floors] = ""


class _PerImage:
    """The values of a metric by row, sorted by image name, because records may have images in different orders."""

    def __init__(self, table: pa.Table, metric: str):
        self._values, offsets = per_image(table, metric)
        self._starts, self._lengths = offsets[:-1], np.diff(offsets)
        self._images, distinct = texts(table, "images")
        self._sorting = [np.argsort(list(map(str, json.loads(images))), kind="stable") for images in distinct]

    def of(self, rows: np.ndarray) -> np.ndarray | None:
        """The values [rows, images] of rows with the same images; None if a row does not have a value for each."""
        sorting = [self._sorting[images] for images in self._images[rows].tolist()]
        if list(map(len, sorting)) != self._lengths[rows].tolist():
            return None
        return self._values[self._starts[rows][:, None] + np.array(sorting)]


def _letters(tested: Paired) -> list[str]:
    """The letters of rows, in the order of rows that `tested` has; they begin with the rows of the best rank."""
    rows = len(tested.ranks)
    differ = tested.pairs["better"] >= 0
    if tested.reason or differ.all():
        return [""] * rows
    places = np.empty(rows, dtype=int)
    places[np.argsort(tested.ranks, kind="stable")] = np.arange(rows)
    pairs = np.sort([places[tested.pairs[name][differ]] for name in ("first", "second")], axis=0)
    found = letters(rows, tuple(map(tuple, pairs.T.tolist())))
    return [found[place] for place in places]


def _intervals(found: Standings, tested: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Set the intervals of the differences to the leaders; rows with equal numbers of images are computed together."""
    lengths: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for rows, values in tested:
        if len(rows) > 1 and values.shape[1] > 1:
            lengths.setdefault(values.shape[1], []).append((rows[1:], values))
    for members in lengths.values():
        rows = np.concatenate([others for others, _ in members])
        with np.errstate(invalid="ignore"):  # infinite values have no interval
            differences = np.concatenate([values[1:] - values[0] for _, values in members])
        found["diff_leader_lo"][rows], found["diff_leader_hi"][rows] = interval_ends(differences, resamples=RESAMPLES)


def pareto(groups: np.ndarray, scores: np.ndarray, costs: np.ndarray, *, higher: bool) -> list[bool | None]:
    """Whether a row is on the Pareto front: no other row of its group is as good in both score and cost, and better in
    one. None for a row without a score or a cost."""
    quality = scores if higher else -scores
    rows = np.flatnonzero(~np.isnan(quality) & ~np.isnan(costs))
    rows = rows[np.lexsort((-quality[rows], costs[rows], groups[rows]))]  # by cost, and at equal cost the best first
    found: list[bool | None] = [None] * len(groups)
    best = (-1, 0.0, 0.0)
    for row, *this in zip(*(array.tolist() for array in (rows, groups[rows], quality[rows], costs[rows])), strict=True):
        better = this[0] != best[0] or this[1] > best[1]
        best = tuple(this) if better else best
        found[row] = better or tuple(this) == best
    return found
