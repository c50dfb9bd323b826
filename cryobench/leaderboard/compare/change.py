"""One change between two results of the same cell. Needs the standard library alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cryobench.leaderboard.compare.matching import cell, named
from cryobench.record import Record


class Verdict(StrEnum):
    """What became of a column of a cell.

    Metrics: `BETTER`, `WORSE` and, where it states no better direction, `CHANGED` are significant; `WITHIN_NOISE` is
    not; `IDENTICAL`: no image has another value; `UNTESTED`: too few images to be significant. `LOST`: a mean in OLD
    and none in NEW, as some image has no number; `GAINED`: the reverse; `NO_NUMBER`: none in either. Costs: `FASTER`
    and `SLOWER` are seconds, `CHEAPER` and `DEARER` the others.
    """

    BETTER = "better"
    WORSE = "worse"
    CHANGED = "changed"
    WITHIN_NOISE = "within noise"
    IDENTICAL = "identical"
    UNTESTED = "untested"
    LOST = "lost"
    GAINED = "gained"
    NO_NUMBER = "no number"
    FASTER = "faster"
    SLOWER = "slower"
    CHEAPER = "cheaper"
    DEARER = "dearer"
    WITHIN_TOLERANCE = "within tolerance"


NO_CHANGE = {
    Verdict.WITHIN_NOISE,
    Verdict.IDENTICAL,
    Verdict.UNTESTED,
    Verdict.NO_NUMBER,
    Verdict.WITHIN_TOLERANCE,
}


@dataclass(frozen=True)
class Change:
    """One column of one cell in OLD and NEW.

    old, new: the mean over images, or the cost; None where there is none. difference: new - old, of a metric with the
    ends lo and hi of its 95% bootstrap interval, paired by image (None for one image and infinite differences).
    p, p_holm: signed-rank test, None where it is not tested. passed: the threshold that was passed, or ''.
    """

    solver: str
    operator: str
    noise: str
    data: str
    seed: int
    dtype: str
    within: str
    n_images: int
    column: str
    unit: str
    direction: str
    old: float | None
    new: float | None
    difference: float | None = None
    lo: float | None = None
    hi: float | None = None
    p: float | None = None
    p_holm: float | None = None
    verdict: Verdict = Verdict.NO_NUMBER
    passed: str = ""

    @classmethod
    def of(
        cls, record: Record, column: str, old: float | None, new: float | None, direction: str, unit: str, **told: Any
    ) -> Change:
        """The change of a column of the cell of a record, with what else is told of it."""
        of = cell(record)
        where = (of.solver, of.operator, of.noise, record.data, of.seed, of.dtype, of.within, len(of.images))
        return cls(*where, column, unit, direction, old, new, **told)


def in_words(change: Change) -> str:
    """`psnr of dct on sumpool:16, noise none, demo, seed 0: worse, 21.3 to 21.1 dB`."""
    old, new = ("none" if number is None else f"{number:.4g}" for number in (change.old, change.new))
    limit = f" (beyond {change.passed})" if change.passed else ""
    return f"{change.column} of {named(change)}: {change.verdict}, {old} to {new} {change.unit}".rstrip() + limit
