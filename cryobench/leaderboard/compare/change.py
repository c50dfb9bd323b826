"""A change between two results of one cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cryobench.leaderboard.compare.matching import described

ChangeKind = Literal[
    "better", "worse", "changed", "within noise", "identical", "untested", "lost", "gained", "no number",
    "faster", "slower", "cheaper", "dearer", "within tolerance",
]  # fmt: skip
"""Outcome for one column of a cell.

Metrics: better, worse and, without a stated direction, changed are significant; within noise is not. identical: equal
for every image. untested: too few images to be significant. lost: a mean in OLD and none in NEW, because an image has
no number; gained: the reverse; no number: none in either. Costs: faster and slower are seconds, cheaper and dearer the
others."""
NO_CHANGE = ("within noise", "identical", "untested", "no number", "within tolerance")
REGRESSIONS = ("worse", "lost")
FOR_THE_WORSE = (*REGRESSIONS, "slower", "dearer")


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
    verdict: ChangeKind = "no number"
    passed: str = ""

    def __str__(self) -> str:
        """`psnr of dct on sumpool:16, noise none, demo, seed 0: worse, 21.3 to 21.1 dB`."""
        old, new = ("none" if number is None else f"{number:.4g}" for number in (self.old, self.new))
        limit = f" (beyond {self.passed})" if self.passed else ""
        return f"{self.column} of {described(self)}: {self.verdict}, {old} to {new} {self.unit}".rstrip() + limit
