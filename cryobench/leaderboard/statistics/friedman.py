"""What many comparisons say of a solver together: average ranks, Friedman's test, Nemenyi's critical difference.

Friedman, JASA 32 (1937) 675; Nemenyi (1963); both as used to compare methods over data sets by Demšar, JMLR 7 (2006) 1.
Needs numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cryobench.leaderboard.statistics.bootstrap import mean
from cryobench.leaderboard.statistics.distributions import chi_squared_tail, studentized_range_quantile
from cryobench.leaderboard.statistics.power import LEVEL
from cryobench.leaderboard.statistics.signed_rank import midranks


class Block(NamedTuple):
    """One comparison. scores: the mean of each solver that took part; None where it has none.

    label: what was measured: operator, noise and data. Blocks of one label, of other seeds or images say, are no
    independent witnesses: their scores are averaged into one.
    """

    label: str
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class Standing:
    """A solver over all blocks.

    average_rank: over the complete blocks, 1 the best, equal scores sharing the mean of their ranks; None for a solver
    left out of these. n_blocks: in which it has a score. beats_floor: blocks in which its score is better than the
    floor's, of the `with_floor` in which both have one; the floor itself has 0 of 0. All are counts of labels.
    """

    solver: str
    average_rank: float | None
    n_blocks: int
    beats_floor: int
    with_floor: int


@dataclass(frozen=True)
class Summary:
    """Solvers over blocks, the best average rank first; those without one last.

    n_blocks: complete blocks, in which all ranked solvers have a score. statistic, p: Friedman's, by its chi-squared
    approximation, corrected for ties. critical_difference: two average ranks that differ by it or more differ
    significantly (Nemenyi, level 0.05), where p <= 0.05. groups: largest sets of solvers that cannot be told apart,
    in order of average rank; a solver may be in several. All None or empty where fewer than two solvers or two blocks
    are complete; `why_not` says so then, and is '' otherwise. left_out: labels of the incomplete blocks.
    """

    standings: list[Standing]
    n_blocks: int
    statistic: float | None
    p: float | None
    critical_difference: float | None
    groups: list[tuple[str, ...]]
    left_out: list[str]
    why_not: str = ""


def summarise(blocks: Sequence[Block], *, higher: bool, floor: str | None = "pinv") -> Summary:
    """Solvers over comparisons. higher: whether a higher score is better. floor: its name in the scores.

    Ranks are taken over the complete blocks, in which all ranked solvers have a score. Solvers skip what they cannot
    do: so those absent from most blocks are left out, one by one, until half of the blocks or more are complete.
    """
    merged = _merged(blocks)
    solvers = list(dict.fromkeys(solver for block in blocks for solver in block.scores))
    present = np.array([[solver in scores for solver in solvers] for scores in merged.values()], dtype=bool)
    ranked, complete = _without_gaps(present.reshape(len(merged), len(solvers)))
    labels = list(merged)
    left_out = [label for place, label in enumerate(labels) if place not in complete]
    if not ranked:
        standings = [_standing(solver, None, merged, higher, floor) for solver in solvers]
        why_not = "no summary: it takes two solvers or more that have scores in two comparisons or more"
        return Summary(standings, 0, None, None, None, [], left_out, why_not)
    scores = np.array([[merged[labels[block]][solvers[solver]] for solver in ranked] for block in complete])
    ranks = midranks(-scores if higher else scores)
    average = dict(zip((solvers[solver] for solver in ranked), ranks.mean(axis=0).tolist(), strict=True))
    standings = [_standing(solver, average.get(solver), merged, higher, floor) for solver in solvers]
    standings.sort(key=lambda standing: math.inf if standing.average_rank is None else standing.average_rank)
    statistic, p = friedman(ranks)
    critical = critical_difference(len(ranked), len(complete))
    order = sorted(average.items(), key=lambda item: item[1])
    groups = _groups(order, critical if p <= LEVEL else math.inf)
    return Summary(standings, len(complete), statistic, p, critical, groups, left_out)


def friedman(ranks: np.ndarray) -> tuple[float, float]:
    """Friedman's statistic, corrected for ties, and its p by the chi-squared distribution, of ranks [blocks, solvers].

    Where every block has all solvers equal there is no evidence: 0 and 1.
    """
    n_blocks, n_solvers = ranks.shape
    middle = (n_solvers + 1) / 2
    between = n_blocks * np.square(ranks.mean(axis=0) - middle).sum()
    within = np.square(ranks - middle).sum() / (n_blocks * (n_solvers - 1))
    if within == 0:
        return 0.0, 1.0
    statistic = float(between / within)
    return statistic, chi_squared_tail(statistic, n_solvers - 1)


def critical_difference(n_solvers: int, n_blocks: int) -> float:
    """Nemenyi's critical difference of average ranks at the level 0.05: Demšar (2006), section 3.2.2 and Table 5(a)."""
    studentized = studentized_range_quantile(1 - LEVEL, n_solvers)
    return studentized / math.sqrt(2) * math.sqrt(n_solvers * (n_solvers + 1) / (6 * n_blocks))


def _merged(blocks: Sequence[Block]) -> dict[str, dict[str, float]]:
    """The mean score of each solver by label, over the blocks of that label; a solver without one of them has none."""
    by_label: dict[str, list[Mapping[str, float | None]]] = {}
    for label, scores in blocks:
        by_label.setdefault(label, []).append(scores)
    merged = {}
    for label, members in by_label.items():
        names = dict.fromkeys(name for scores in members for name in scores)
        means = {name: mean([scores.get(name) for scores in members]) for name in names}
        merged[label] = {name: found for name, found in means.items() if found is not None}
    return merged


def _without_gaps(present: np.ndarray) -> tuple[list[int], list[int]]:
    """The solvers that are ranked and the blocks that have them all, of present [blocks, solvers]; or two empty lists.

    The solver absent from most blocks is left out, the last of several, until half of the blocks are complete.
    """
    solvers = list(range(present.shape[1]))
    while len(solvers) > 1:
        complete = np.flatnonzero(present[:, solvers].all(axis=1)).tolist()
        if len(complete) >= max(2, len(present) / 2):
            return solvers, complete
        solvers.remove(min(solvers, key=lambda solver: (present[:, solver].sum(), -solver)))
    return [], []


def _standing(
    solver: str, average: float | None, merged: Mapping[str, Mapping[str, float]], higher: bool, floor: str | None
) -> Standing:
    own = [scores for scores in merged.values() if solver in scores]
    if floor is None or solver == floor:
        return Standing(solver, average, len(own), 0, 0)
    pairs = [(scores[solver], scores[floor]) for scores in own if floor in scores]
    better = sum(score > below if higher else score < below for score, below in pairs)
    return Standing(solver, average, len(own), better, len(pairs))


def _groups(order: Sequence[tuple[str, float]], critical: float) -> list[tuple[str, ...]]:
    """The largest runs of solvers, in order of average rank, whose ends are less than the critical difference apart."""
    groups: list[tuple[str, ...]] = []
    reached = 0
    for start, (_, lowest) in enumerate(order):
        stop = start + sum(rank - lowest < critical for _, rank in order[start:])
        if stop > reached and stop - start > 1:
            groups.append(tuple(solver for solver, _ in order[start:stop]))
        reached = max(reached, stop)
    return groups
