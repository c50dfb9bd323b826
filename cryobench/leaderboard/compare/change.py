"""The cells of two results, and changes between them.

Cells match if they are the same task. Content hashes are not compared: they also cover versions of packages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from cryobench.errors import ResultsError
from cryobench.record import COSTS, Record

ChangeKind = Literal[
    "better", "worse", "changed", "within noise", "identical", "untested", "lost", "gained", "no number",
    "faster", "slower", "cheaper", "dearer", "within tolerance",
]  # fmt: skip
"""Outcome for one column of a cell.

Metrics: better, worse and (without a stated direction) changed are significant; within noise is not. identical: equal
for every image. untested: too few images to be significant. lost: a mean in OLD but not in NEW, because an image has
no number; gained: the reverse; no number: in neither. Costs: faster and slower for seconds, cheaper and dearer for
others."""
NO_CHANGE = ("within noise", "identical", "untested", "no number", "within tolerance")
REGRESSIONS = ("worse", "lost")
FOR_THE_WORSE = (*REGRESSIONS, "slower", "dearer")


@dataclass
class Change:
    """One column of one cell in OLD and NEW.

    old, new: the mean over images, or the cost; None if missing. difference: new - old. lo, hi: for a metric, the 95%
    bootstrap interval of the difference, paired by image (None for one image and infinite differences). p, p_holm:
    signed-rank test, None if not tested. passed: the threshold that is exceeded, or ''.
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


class Match(NamedTuple):
    """Cells of two results. only_old, only_new: cells in one of them only. repeated: the number of records that were
    replaced by a later record of the same cell in the same results."""

    pairs: list[tuple[Record, Record]]
    only_old: list[Record]
    only_new: list[Record]
    repeated: int


def match(
    old: Sequence[Record], new: Sequence[Record], key: Callable[[Record], tuple[Any, ...]] | None = None
) -> Match:
    """The cells of old and new, in the order of old. key: what records of one cell have in common, by default all that
    defines it. Raises `ResultsError` if they have none in common."""
    key = key or _cell_key
    before = {key(record): record for record in old}  # the last record of a cell is kept
    after = {key(record): record for record in new}
    pairs = [(before[found], after[found]) for found in before if found in after]
    if not pairs:
        examples = f" (such as {described(old[0])} and {described(new[0])})" if old and new else ""
        raise ResultsError(
            f"no cell is in both results{examples}; compare results with the same solvers, operators, noise, data, "
            "seeds and images"
        )
    only_old = [record for found, record in before.items() if found not in after]
    only_new = [record for found, record in after.items() if found not in before]
    return Match(pairs, only_old, only_new, len(old) + len(new) - len(before) - len(after))


def _cell_key(record: Record) -> tuple[Any, ...]:
    """What two records of the same cell have in common; images by digest if it is known, else by label."""
    images = record.problem.get("data_digest") or record.data, tuple(sorted(record.images))
    return record.solver, record.operator, record.noise, record.seed, *images, *dtype_and_region(record)


def dtype_and_region(record: Record) -> tuple[str, str]:
    """The dtype of a record, and the region in which metrics were computed."""
    return str(record.environment.get("dtype", "float32")), str(record.problem.get("within") or "image")


def described(record: Record | Change) -> str:
    """`dct on sumpool:16, noise none, demo, seed 0`."""
    return f"{record.solver} on {record.operator}, noise {record.noise}, {record.data}, seed {record.seed}"


def direction_and_unit(record: Record, column: str) -> tuple[str, str]:
    """Direction and unit that a record states for a metric; "none" and "" if it states none."""
    for found in record.columns:
        if found.get("name") == column:
            return found.get("direction", "none"), found.get("unit", "")
    return "none", ""


def directions(pairs: Iterable[tuple[Record, Record]]) -> dict[str, str]:
    """The columns that both records of a pair have, and the direction of each; costs last."""
    found: dict[str, str] = {}
    for before, after in pairs:
        for name in (*before.values, *before.together):
            if name in after.values or name in after.together:
                found.setdefault(name, direction_and_unit(before, name)[0])
    return found | dict.fromkeys(COSTS, "lower")
