"""Which cells of two sets of results are the same, whatever made them. Needs the standard library alone.

A cell is what was to be done: its content hash also covers the versions of the packages, which here may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cryobench.errors import ResultsError
from cryobench.record import COSTS, Record

if TYPE_CHECKING:
    from cryobench.leaderboard.compare.change import Change


class Cell(NamedTuple):
    """What two records must share. data: the digest of the images where it is known, else their label."""

    solver: str
    operator: str
    noise: str
    data: str
    seed: int
    images: tuple[str, ...]
    dtype: str
    within: str


class Match(NamedTuple):
    """Cells of two results. only_old, only_new: those of one of them alone. repeated: how many records a later one of
    the same cell and the same results replaced."""

    pairs: list[tuple[Record, Record]]
    only_old: list[Record]
    only_new: list[Record]
    repeated: int


def match(old: Sequence[Record], new: Sequence[Record]) -> Match:
    """The cells of old and new, in the order of old. Raises `ResultsError` where none is in both."""
    before = {cell(record): record for record in old}  # the last record of a cell is the one that stays
    after = {cell(record): record for record in new}
    pairs = [(before[found], after[found]) for found in before if found in after]
    if not pairs:
        examples = f" (such as {named(old[0])} and {named(new[0])})" if old and new else ""
        raise ResultsError(
            f"no cell is in both results{examples}: compare those of equal solver, operator, noise, data, seed, images"
        )
    only_old = [record for found, record in before.items() if found not in after]
    only_new = [record for found, record in after.items() if found not in before]
    return Match(pairs, only_old, only_new, len(old) + len(new) - len(before) - len(after))


def cell(record: Record) -> Cell:
    """What the record is of."""
    return Cell(
        record.solver,
        record.operator,
        record.noise,
        str(record.problem.get("data_digest") or record.data),
        record.seed,
        tuple(sorted(record.images)),
        str(record.environment.get("dtype", "float32")),
        str(record.problem.get("within") or "image"),
    )


def named(record: Record | Change) -> str:
    """A cell in words: `dct on sumpool:16, noise none, demo, seed 0`."""
    return f"{record.solver} on {record.operator}, noise {record.noise}, {record.data}, seed {record.seed}"


def stated(record: Record, column: str) -> tuple[str, str]:
    """Direction and unit that a record states of a metric; "none" and "" where it states nothing."""
    for found in record.columns:
        if found.get("name") == column:
            return found.get("direction", "none"), found.get("unit", "")
    return "none", ""


def directions(pairs: Iterable[tuple[Record, Record]]) -> dict[str, str]:
    """The columns that pairs of records have in common, and which way each is better; costs last."""
    found: dict[str, str] = {}
    for before, after in pairs:
        for name in before.values:
            if name in after.values:
                found.setdefault(name, stated(before, name)[0])
    return found | dict.fromkeys(COSTS, "lower")
