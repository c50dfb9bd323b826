"""Matching of the cells of two sets of results.

Cells match if they are the same task. Content hashes also cover versions of packages, which may differ here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cryobench.errors import ResultsError
from cryobench.record import COSTS, Record

if TYPE_CHECKING:
    from cryobench.leaderboard.compare.change import Change


class Match(NamedTuple):
    """Cells of two results. only_old, only_new: cells of one of them. repeated: the number of records that were
    replaced by a later one of the same cell in the same results."""

    pairs: list[tuple[Record, Record]]
    only_old: list[Record]
    only_new: list[Record]
    repeated: int


def match(old: Sequence[Record], new: Sequence[Record]) -> Match:
    """The cells of old and new, in the order of old. Raises `ResultsError` where they have none in common."""
    before = {_cell(record): record for record in old}  # the last record of a cell stays
    after = {_cell(record): record for record in new}
    pairs = [(before[found], after[found]) for found in before if found in after]
    if not pairs:
        examples = f" (such as {described(old[0])} and {described(new[0])})" if old and new else ""
        raise ResultsError(
            f"no cell is in both results{examples}: compare those of equal solver, operator, noise, data, seed, images"
        )
    only_old = [record for found, record in before.items() if found not in after]
    only_new = [record for found, record in after.items() if found not in before]
    return Match(pairs, only_old, only_new, len(old) + len(new) - len(before) - len(after))


def _cell(record: Record) -> tuple[Any, ...]:
    """What two records of one cell have in common; images by digest where it is known, else by label."""
    images = record.problem.get("data_digest") or record.data, tuple(sorted(record.images))
    return record.solver, record.operator, record.noise, record.seed, *images, *precision_and_part(record)


def precision_and_part(record: Record) -> tuple[str, str]:
    """The dtype of a record, and the part of images in which metrics were computed."""
    return str(record.environment.get("dtype", "float32")), str(record.problem.get("within") or "image")


def described(record: Record | Change) -> str:
    """`dct on sumpool:16, noise none, demo, seed 0`."""
    return f"{record.solver} on {record.operator}, noise {record.noise}, {record.data}, seed {record.seed}"


def stated(record: Record, column: str) -> tuple[str, str]:
    """Direction and unit that a record states for a metric; "none" and "" where it states nothing."""
    for found in record.columns:
        if found.get("name") == column:
            return found.get("direction", "none"), found.get("unit", "")
    return "none", ""


def directions(pairs: Iterable[tuple[Record, Record]]) -> dict[str, str]:
    """The columns that pairs of records have in common, and the direction of each; costs last."""
    found: dict[str, str] = {}
    for before, after in pairs:
        for name in before.values:
            if name in after.values:
                found.setdefault(name, stated(before, name)[0])
    return found | dict.fromkeys(COSTS, "lower")
