"""Changes from a published leaderboard, a CSV, to the records of results.

A table has means with intervals and no values of images: nothing can be paired, so nothing is tested. The interval of
the difference of two means is that of independent means from their two intervals (the method of variance estimates
recovery: Zou and Donner, Statistics in Medicine 27 (2008) 1693-1702),

    d - sqrt((a - a_lo)^2 + (b_hi - b)^2), d + sqrt((a_hi - a)^2 + (b - b_lo)^2),  d = a - b,

which for results of the same images is far too wide: most of the variation is between images, and cancels in pairs.

A table has no digests of data. It names data as a leaderboard does: `label#1a2b`, with the first digits of the digest,
where a label has several data sets, and `label, N images each` where they are pooled.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cryobench.errors import ResultsError, reason_of
from cryobench.leaderboard.cells import hardware_of
from cryobench.leaderboard.compare.change import Change, direction_and_unit, directions, match
from cryobench.leaderboard.compare.changes import (
    TOLERANCE,
    Changes,
    Pairs,
    by_tolerance,
    change_of,
    check_tolerance,
    collected,
    cost_changes,
    remarks_on_costs,
)
from cryobench.leaderboard.compare.thresholds import known_column, thresholds
from cryobench.leaderboard.groups import data_labels
from cryobench.leaderboard.pooled import pooled
from cryobench.leaderboard.statistics.bootstrap import bootstrap_interval, mean
from cryobench.record import COSTS, LEADING, RANKING, Record
from cryobench.results.tables import from_cell

STATUSES = ("ok", "skipped", "failed")
_POOLED = re.compile(r", \d+ images each(#[0-9a-f]+)?$")
"""The end of the name of pooled data sets (`pooled.pooled`)."""


class Table(NamedTuple):
    """A published leaderboard: records without values of images, whose means are in `together`, and the interval
    (lo, hi) of each mean by the place of its record and its name."""

    records: list[Record]
    intervals: Mapping[tuple[int, str], tuple[float, float]]


def read_table(path: Path) -> Table:
    """Read a leaderboard that `--csv` or `--publish` wrote. Rows of solvers that were not run are left out.

    Raises `ResultsError` for a file that cannot be read, is no leaderboard or has no rows.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"cannot read {path}: {reason_of(error)}") from error
    names = list(rows[0]) if rows else []
    missing = [name for name in LEADING if name not in names]
    if missing:
        raise ResultsError(
            f"{path} is not a leaderboard with rows: it lacks the column {missing[0]!r}; give a CSV that "
            "`cryobench leaderboard --csv` or `sweep --publish` wrote"
        )
    metrics = [name for name in names if {f"{name}_lo", f"{name}_hi"} <= set(names) and name not in RANKING]
    records: list[Record] = []
    intervals: dict[tuple[int, str], tuple[float, float]] = {}
    for line, row in enumerate(rows, start=2):
        if row["status"] not in (*STATUSES, None):  # a published number of a cell that was not run
            continue
        try:
            if None in row.values():
                raise ValueError("the row is too short")
            found = {name: _number(row[name]) for name in metrics}
            for name in metrics:
                lo, hi = _number(row[f"{name}_lo"]), _number(row[f"{name}_hi"])
                if lo is not None and hi is not None:
                    intervals[len(records), name] = lo, hi
            records.append(_record(row, {name: value for name, value in found.items() if value is not None}))
        except (ValueError, TypeError) as error:
            raise ResultsError(f"{path}, line {line}: {reason_of(error)}; the file is damaged or was edited") from error
    if not records:
        raise ResultsError(f"{path} has no rows of cells that were run")
    return Table(records, intervals)


def _number(text: str) -> float | None:
    return float(text) if text else None


def _record(row: Mapping[str, str], means: Mapping[str, float]) -> Record:
    texts = {name: from_cell(row[name]) for name in ("solver", "operator", "noise", "data", "reason")}
    costs = {name: _number(row[name]) for name in COSTS if name in row}
    known: Any = {name: cost for name, cost in costs.items() if cost is not None}
    return Record(
        hash="", status=row["status"], seed=int(row["seed"]), images=[""] * int(row["n_images"] or 0), **texts,  # pyright: ignore[reportArgumentType]
        together=dict(means),
        timing={name: known[name] for name in ("seconds_per_image",) if name in known},
        counters={name: known[name] for name in ("nfe", "operator_calls") if name in known},
        peak_memory_mib=known.get("peak_memory_mib"),
        problem={"within": row.get("within") or "image"},
        environment={"hardware": from_cell(row.get("hardware") or "")},
    )  # fmt: skip


def changes_from_table(
    old: Table,
    new: Sequence[Record],
    *,
    columns: Sequence[str] | None = None,
    fail_on: str | None = None,
    tolerance: float = TOLERANCE,
) -> Changes:
    """Changes from a published leaderboard to new records, as `changes` gives them between records.

    Cells match if solver, operator, noise, data, seed, number of images and region are equal. Where the table is of
    pooled data sets, the new records are pooled. Where it distinguishes data sets of a label, the digests of the new
    ones must begin with its digits; where it does not, but several new data sets would match, none does. A metric is
    better or worse where the interval of the difference does not contain 0; without intervals, where it differs by more
    than the tolerance. Thresholds of `fail_on` apply to the means alone. Errors: as of `changes`.
    """
    check_tolerance(tolerance)
    names = dict.fromkeys(record.data for record in old.records)
    found = match(old.records, _named_as(names, pooled(new) if any(map(_POOLED.search, names)) else new), _key)
    known = directions((after, before) for before, after in found.pairs)
    limits = thresholds(fail_on, known) if fail_on is not None else []
    chosen = list(known) if columns is None else [known_column(name, known) for name in columns]
    chosen = list(dict.fromkeys([*chosen, *(limit.column for limit in limits)]))
    ran = [(before, after) for before, after in found.pairs if before.status == after.status == "ok"]
    costs = [name for name in chosen if name in COSTS]
    places = {id(record): place for place, record in enumerate(old.records)}
    every = [
        *(
            change
            for name in chosen
            if name not in COSTS
            for change in _metric_changes(old, places, ran, name, tolerance)
        ),
        *(change for name in costs for change in cost_changes(ran, name, tolerance)),
    ]
    moved = sum(before.environment["hardware"] != (hardware_of(after) or "") for before, after in ran)
    alone = {name for before, after in ran for name in before.together if name not in (*after.values, *after.together)}
    remarks = [
        *_remarks(found.repeated, every, alone if columns is None else ()),
        *remarks_on_costs(len(ran), moved, costs, tolerance),
    ]
    return collected(found, every, limits, remarks, means_alone=True)


def _named_as(names: Iterable[str], records: Sequence[Record]) -> list[Record]:
    """The records, with their data named as those of a table that has the data `names`."""
    marks: dict[str, list[str]] = {}
    for name in names:
        label, _, mark = name.rpartition("#")
        if mark:
            marks.setdefault(label, []).append(mark)
    digests = [str(record.problem.get("data_digest") or "") for record in records]
    first: dict[str, str] = {}
    labels = [first.setdefault(digest, record.data) if digest else record.data
              for record, digest in zip(records, digests, strict=True)]  # fmt: skip
    plain = [dataclasses.replace(record, data=label) for record, label in zip(records, labels, strict=True)]
    alike: dict[tuple[Any, ...], set[str]] = {}
    for record, digest in zip(plain, digests, strict=True):
        alike.setdefault(_key(record), set()).add(digest)
    named = []
    for record, digest, marked in zip(plain, digests, data_labels(labels, digests), strict=True):
        own = [mark for mark in marks.get(record.data, ()) if digest.rpartition(":")[2].startswith(mark)]
        data = f"{record.data}#{own[0]}" if own else marked if len(alike[_key(record)]) > 1 else record.data
        named.append(dataclasses.replace(record, data=data))
    return named


def _key(record: Record) -> tuple[Any, ...]:
    """What a row and a record of the same cell have in common."""
    region = str(record.problem.get("within") or "image")
    return record.solver, record.operator, record.noise, record.data, record.seed, len(record.images), region


def _metric_changes(old: Table, places: Mapping[int, int], ran: Pairs, name: str, tolerance: float) -> Iterator[Change]:
    for before, after in ran:
        values = after.values.get(name)
        if name not in before.together or (values is None and name not in after.together):
            continue
        direction, unit = direction_and_unit(after, name)
        new = after.together[name] if values is None else mean(values)
        change = change_of(after, name, unit, direction, before.together[name], new)
        if new is None:
            change.verdict = "lost"
        elif new == change.old:
            change.difference, change.verdict = 0.0, "identical"
        else:
            change.difference = new - before.together[name]
            ends = bootstrap_interval(values or ())
            interval = _interval(before.together[name], old.intervals.get((places[id(before)], name)), new, ends)
            if interval is None:
                change.verdict = by_tolerance(change, tolerance)
            else:
                change.lo, change.hi = interval
                better, worse = ("better", "worse") if direction == "higher" else ("worse", "better")
                if direction not in ("higher", "lower"):
                    better = worse = "changed"
                change.verdict = better if change.lo > 0 else worse if change.hi < 0 else "within noise"
        yield change


def _interval(
    old: float, of_old: tuple[float, float] | None, new: float, of_new: tuple[float | None, float | None]
) -> tuple[float, float] | None:
    """The interval of new - old from those of the two means; None without one of them."""
    lo, hi = of_new
    if of_old is None or lo is None or hi is None or not math.isfinite(new - old):
        return None
    below = math.hypot(new - lo, of_old[1] - old)
    above = math.hypot(hi - new, old - of_old[0])
    return new - old - below, new - old + above


def _remarks(repeated: int, every: Sequence[Change], alone: Collection[str]) -> Iterator[str]:
    """What a reader should know. alone: the metrics that only OLD has."""
    yield (
        "OLD is a table of means and intervals, without values of images: nothing is paired or tested, and the 95% "
        "intervals are of independent means, too wide for the same images; --fail-on compares the means alone"
    )
    if alone:
        yield f"for some cells only OLD has {', '.join(sorted(alone))}"
    if repeated:
        yield f"not compared: {repeated} rows or records of the same cell as a later one"
    if not any(change.column not in COSTS for change in every):
        yield "no metric is in both"
