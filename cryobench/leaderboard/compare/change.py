"""A change between two results of one cell."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cryobench.leaderboard.compare.matching import described


class ChangeKind(StrEnum):
    """Outcome for one column of a cell.

    Metrics: `BETTER`, `WORSE` and, without a stated direction, `CHANGED` are significant; `WITHIN_NOISE` is not.
    `IDENTICAL`: equal for every image. `UNTESTED`: too few images to be significant. `LOST`: a mean in OLD and none in
    NEW, because an image has no number; `GAINED`: the reverse; `NO_NUMBER`: none in either. Costs: `FASTER` and
    `SLOWER` are seconds, `CHEAPER` and `DEARER` the others.
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


NO_CHANGE = ("within noise", "identical", "untested", "no number", "within tolerance")
REGRESSIONS = (ChangeKind.WORSE, ChangeKind.LOST)
FOR_THE_WORSE = (*REGRESSIONS, ChangeKind.SLOWER, ChangeKind.DEARER)


@dataclass
class Change:
    """One column of one cell in OLD and NEW.

    old, new: the mean over images, or the cost; None where there is none. difference: new - old; of a metric with the
    ends lo and hi of its 95% bootstrap interval, paired by image (None for one image and infinite differences).
    p, p_holm: signed-rank test, None where not tested. passed: the threshold that is exceeded, or ''.
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
    verdict: ChangeKind = ChangeKind.NO_NUMBER
    passed: str = ""

    def __str__(self) -> str:
        """`psnr of dct on sumpool:16, noise none, demo, seed 0: worse, 21.3 to 21.1 dB`."""
        old, new = ("none" if number is None else f"{number:.4g}" for number in (self.old, self.new))
        limit = f" (beyond {self.passed})" if self.passed else ""
        return f"{self.column} of {described(self)}: {self.verdict}, {old} to {new} {self.unit}".rstrip() + limit
