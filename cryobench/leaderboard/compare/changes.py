"""What changed between two results of the same cells: of another version, another machine, another day.

A metric is tested image by image (`metric_changes`). A cost is one number a cell, and is called changed beyond a stated
tolerance. Needs numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryobench.errors import ParameterError
from cryobench.leaderboard.compare.change import Change, Verdict, in_words
from cryobench.leaderboard.compare.matching import directions, match, named, stated
from cryobench.leaderboard.compare.metric_changes import measured, tested
from cryobench.leaderboard.compare.thresholds import Threshold, known_column, thresholds
from cryobench.leaderboard.statistics.power import LEVEL, images_to_test
from cryobench.record import COSTS, Record

TOLERANCE = 0.2
"""Relative change of a cost up to which it counts as the same."""


@dataclass(frozen=True)
class Changes:
    """What changed. regressions: what should stop a release, in words: cells that ran and no longer do (`broken`) and,
    without thresholds, metrics that got significantly worse or lost their number; else what passed a threshold.
    mended: cells that run only now. only_old, only_new: cells of one of the results. remarks: what to know beside."""

    changes: list[Change]
    regressions: list[str]
    broken: list[str]
    mended: list[str]
    only_old: list[str]
    only_new: list[str]
    remarks: list[str]


def changes(
    old: Sequence[Record],
    new: Sequence[Record],
    *,
    columns: Sequence[str] | None = None,
    fail_on: str | None = None,
    tolerance: float = TOLERANCE,
) -> Changes:
    """What changed from old to new in `columns` (all metrics and costs by default). fail_on: see `thresholds`.

    Raises `ResultsError` where no cell is in both, `ParameterError` for a column that is not in both, a threshold that
    makes no sense and a negative tolerance.
    """
    if not 0 <= tolerance < math.inf:
        raise ParameterError(f"tolerance must be 0 or more, and is {tolerance}; {TOLERANCE} is usual")
    found = match(old, new)
    known = directions(found.pairs)
    limits = thresholds(fail_on, known) if fail_on is not None else []
    chosen = list(known) if columns is None else [known_column(name, known) for name in columns]
    chosen = list(dict.fromkeys([*chosen, *(limit.column for limit in limits)]))
    ran = [(before, after) for before, after in found.pairs if before.status == after.status == "ok"]
    metrics = [name for name in chosen if name not in COSTS]
    told = tested([series for name in metrics for series in measured(ran, name)])
    told += [cost for name in chosen if name in COSTS for cost in _costs(ran, name, tolerance)]
    told = [replace(change, passed=_passed(change, limits)) for change in told]
    broken = [_told_why(after) for before, after in found.pairs if before.status == "ok" != after.status]
    worse = [
        change for change in told if (change.passed if limits else change.verdict in (Verdict.WORSE, Verdict.LOST))
    ]
    return Changes(
        told,
        regressions=[*map(in_words, worse), *broken],
        broken=broken,
        mended=[_told_why(before) for before, after in found.pairs if after.status == "ok" != before.status],
        only_old=list(map(named, found.only_old)),
        only_new=list(map(named, found.only_new)),
        remarks=[
            *_on_repeated(found.repeated),
            *_on_columns(ran, columns),
            *_on_tests(told),
            *_on_costs(ran, [name for name in chosen if name in COSTS], tolerance),
        ],
    )


def _costs(ran: Sequence[tuple[Record, Record]], name: str, tolerance: float) -> Iterator[Change]:
    """The changes of a cost, of the cells that have it."""
    unit = {"seconds_per_image": "s", "peak_memory_mib": "MiB"}.get(name, "")
    less, more = (Verdict.FASTER, Verdict.SLOWER) if name == "seconds_per_image" else (Verdict.CHEAPER, Verdict.DEARER)
    for before, after in ran:
        old, new = _cost_of(before, name), _cost_of(after, name)
        if old is not None and new is not None:
            same = new <= old * (1 + tolerance) and old <= new * (1 + tolerance)
            verdict = Verdict.WITHIN_TOLERANCE if same else more if new > old else less
            yield Change.of(after, name, old, new, "lower", unit, difference=new - old, verdict=verdict)


def _cost_of(record: Record, name: str) -> float | None:
    if name == "peak_memory_mib":
        return record.peak_memory_mib
    return (record.timing if name == "seconds_per_image" else record.counters).get(name)


def _passed(change: Change, limits: Sequence[Threshold]) -> str:
    """The first threshold that a change passed, unless its interval holds 0: then it may be chance."""
    for limit in limits:
        if limit.column != change.column:
            continue
        if change.verdict == Verdict.LOST:
            return str(limit)
        if change.old is None or change.new is None:
            continue
        chance = change.lo is not None and change.hi is not None and change.lo <= 0 <= change.hi
        if limit.passed_by(change.old, change.new) and not chance:
            return str(limit)
    return ""


def _told_why(record: Record) -> str:
    """A cell without a result, and why."""
    return f"{named(record)}: {record.status}, {record.reason or 'no reason given'}"


def _on_repeated(repeated: int) -> Iterator[str]:
    if repeated:
        yield f"{repeated} records were left out for later ones of the same cell"


def _on_columns(ran: Sequence[tuple[Record, Record]], metrics: Sequence[str] | None) -> Iterator[str]:
    """What there is of metrics and is not compared, for want of the other result's or of its agreement."""
    for side, other, told in ((0, 1, "OLD"), (1, 0, "NEW")):
        alone = {name for pair in ran for name in pair[side].values if name not in pair[other].values}
        if alone and metrics is None:
            yield f"for some cells only {told} has {', '.join(sorted(alone))}"
    both = {name for pair in ran for name in pair[0].values if name in pair[1].values}
    for name in sorted(both if metrics is None else both & set(metrics)):
        if any(name in b.values and name in a.values and stated(b, name) != stated(a, name) for b, a in ran):
            yield f"{name} is not compared where the results state another direction or unit of it"


def _on_tests(told: Sequence[Change]) -> Iterator[str]:
    tests = sum(change.p is not None for change in told)
    untested = [change for change in told if change.verdict == Verdict.UNTESTED]
    if tests:
        yield f"tests: signed-rank, level {LEVEL}, corrected for {tests} tests by Holm; intervals: 95%, uncorrected"
    if untested:
        images = images_to_test(tests + len(untested))
        yield (
            f"{len(untested)} not tested: too few images to be significant among all changes; "
            f"{images} images would do, or fewer columns (--metrics)"
        )


def _on_costs(ran: Sequence[tuple[Record, Record]], costs: Sequence[str], tolerance: float) -> Iterator[str]:
    if costs and ran:
        yield f"costs are one number a cell, called changed beyond {100 * tolerance:g}%: a timing has no interval"
    elsewhere = sum(_machine(before) != _machine(after) for before, after in ran)
    if costs and elsewhere:
        yield f"{elsewhere} of the cells ran on other hardware than before: their costs tell of that too"


def _machine(record: Record) -> tuple[Any, ...]:
    hardware = record.environment.get("hardware")
    told = hardware if isinstance(hardware, dict) else {}
    return record.environment.get("device"), told.get("processor"), told.get("torch_threads")
