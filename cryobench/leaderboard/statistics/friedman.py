"""Solvers over several comparisons: average ranks, Friedman's test, Nemenyi's critical difference.

Friedman, JASA 32 (1937) 675; Nemenyi (1963); both as applied to methods over data sets by Demšar, JMLR 7 (2006) 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from cryobench.leaderboard.statistics.bootstrap import mean
from cryobench.leaderboard.statistics.power import LEVEL
from cryobench.leaderboard.statistics.signed_rank import midranks


class Block(NamedTuple):
    """One comparison. scores: the mean of each solver, None if missing.

    label: operator, noise and data. Blocks with the same label (other seeds or images) are not independent: their
    scores are averaged into one block.
    """

    label: str
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class SolverRank:
    """A solver over all blocks; counts are of labels.

    average_rank: over the complete blocks, 1 the best, equal scores sharing the mean of their ranks; None for a solver
    excluded from the ranking. n_blocks: blocks in which it has a score. beats_floor: blocks in which its score is
    better than the floor's, of the `with_floor` in which both have one; 0 of 0 for the floor itself.
    """

    solver: str
    average_rank: float | None
    n_blocks: int
    beats_floor: int
    with_floor: int


@dataclass(frozen=True)
class AverageRanks:
    """Solvers over blocks, best average rank first, excluded solvers last.

    n_blocks: complete blocks, in which all ranked solvers have a score. statistic, p: Friedman's, corrected for ties,
    by the chi-squared approximation. critical_difference: if p <= 0.05, average ranks that differ by at least this much
    differ significantly (Nemenyi, level 0.05). groups: largest sets of solvers without a significant difference, in
    order of average rank; a solver may be in several. left_out: labels of the incomplete blocks. reason: why there are
    no average ranks (fewer than two solvers or two complete blocks), else ''; the other fields are then None or empty.
    """

    solvers: list[SolverRank]
    n_blocks: int
    statistic: float | None
    p: float | None
    critical_difference: float | None
    groups: list[tuple[str, ...]]
    left_out: list[str]
    reason: str = ""


def summarise(blocks: Sequence[Block], *, higher: bool, floor: str | None = "pinv") -> AverageRanks:
    """Average ranks of solvers over comparisons. higher: whether a higher score is better. floor: its solver name.

    Ranks are computed over the complete blocks. Since solvers may skip problems, the solver that is missing in the most
    blocks (the last one in a tie) is excluded, repeatedly, until at least half of the blocks are complete.
    """
    scores = _merged(blocks)
    ranked, complete = _complete(scores.notna().to_numpy())
    left_out = scores.index[~complete].tolist()
    ranks = midranks(scores.to_numpy()[complete][:, ranked] * (-1 if higher else 1))
    average = dict(zip(scores.columns[ranked], ranks.mean(axis=0).tolist(), strict=True)) if ranked else {}
    solvers = [_solver_rank(name, average.get(name), scores, higher, floor) for name in scores.columns]
    if not ranked:
        reason = "no summary: it requires two or more solvers that have scores in two or more comparisons"
        return AverageRanks(solvers, 0, None, None, None, [], left_out, reason)
    solvers.sort(key=lambda solver: math.inf if solver.average_rank is None else solver.average_rank)
    statistic, p = friedman(ranks)
    critical = critical_difference(*ranks.shape[::-1])
    groups = _groups(sorted(average.items(), key=lambda item: item[1]), critical if p <= LEVEL else math.inf)
    return AverageRanks(solvers, len(ranks), statistic, p, critical, groups, left_out)


def friedman(ranks: np.ndarray) -> tuple[float, float]:
    """Friedman's statistic, corrected for ties, and its p by the chi-squared distribution, of ranks [blocks, solvers].

    (0, 1) where all solvers are equal in every block.
    """
    from scipy.special import chdtrc

    n_blocks, n_solvers = ranks.shape
    middle = (n_solvers + 1) / 2
    between = n_blocks * np.square(ranks.mean(axis=0) - middle).sum()
    within = np.square(ranks - middle).sum() / (n_blocks * (n_solvers - 1))
    if within == 0:
        return 0.0, 1.0
    statistic = float(between / within)
    return statistic, float(chdtrc(n_solvers - 1, statistic))


def critical_difference(n_solvers: int, n_blocks: int) -> float:
    """Nemenyi's critical difference of average ranks at the level 0.05: Demšar (2006), section 3.2.2 and Table 5(a)."""
    from scipy.stats import studentized_range  # takes a second to import

    studentized = float(studentized_range.ppf(1 - LEVEL, n_solvers, np.inf))
    return studentized / math.sqrt(2) * math.sqrt(n_solvers * (n_solvers + 1) / (6 * n_blocks))


def _merged(blocks: Sequence[Block]) -> pd.DataFrame:
    """The mean score [label, solver] over the blocks of each label; NaN if a solver has no score in one of them."""
    solvers = list(dict.fromkeys(solver for block in blocks for solver in block.scores))
    by_label: dict[str, list[Mapping[str, float | None]]] = {}
    for label, scores in blocks:
        by_label.setdefault(label, []).append(scores)
    means = [[mean([scores.get(name) for scores in members]) for name in solvers] for members in by_label.values()]
    return pd.DataFrame(means, index=list(by_label), columns=solvers, dtype=float)


def _complete(present: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The ranked solvers, and which blocks have scores of all of them. present: [blocks, solvers]."""
    solvers = list(range(present.shape[1]))
    while len(solvers) > 1:
        complete = np.asarray(present[:, solvers].all(axis=1))
        if complete.sum() >= max(2, len(present) / 2):
            return solvers, complete
        solvers.remove(min(solvers, key=lambda solver: (present[:, solver].sum(), -solver)))
    return [], np.zeros(len(present), dtype=bool)


def _solver_rank(
    solver: str, average: float | None, scores: pd.DataFrame, higher: bool, floor: str | None
) -> SolverRank:
    own = scores[solver].to_numpy()
    n_blocks = int((~np.isnan(own)).sum())
    if solver == floor or floor not in scores:
        return SolverRank(solver, average, n_blocks, 0, 0)
    below = scores[floor].to_numpy()
    above = own > below if higher else own < below
    return SolverRank(solver, average, n_blocks, int(above.sum()), int((~np.isnan(own) & ~np.isnan(below)).sum()))


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
