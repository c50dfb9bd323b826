"""Changes between two results of the same cells, such as of different versions or machines.

Metrics are tested image by image with the signed-rank test and Holm's correction over all tests, metrics and cells
together: if all changes are random, the probability of any significant change is at most 0.05. A cost is one number per
cell, and counts as changed beyond a stated tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cryobench.errors import ParameterError
from cryobench.leaderboard.compare.change import (
    REGRESSIONS,
    Change,
    ChangeKind,
    Match,
    described,
    direction_and_unit,
    directions,
    dtype_and_region,
    match,
)
from cryobench.leaderboard.compare.thresholds import Threshold, known_column, thresholds
from cryobench.leaderboard.statistics.bootstrap import interval_ends, mean
from cryobench.leaderboard.statistics.pairs import RESAMPLES, difference
from cryobench.leaderboard.statistics.power import LEVEL, images_to_test, reachable
from cryobench.leaderboard.statistics.signed_rank import holm, signed_rank
from cryobench.record import COSTS, Record

TOLERANCE = 0.2
"""Maximum relative change of a cost that counts as unchanged."""

Pairs = Sequence[tuple[Record, Record]]


@dataclass
class Changes:
    """All changes.

    broken: cells that ran and no longer do. mended: the reverse. only_old, only_new: cells in one result only.
    regressions: `broken`, and the metrics that got significantly worse or lost their mean; with thresholds, `broken`
    and the changes that exceed one. remarks: notes for the reader.
    """

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
    """Changes from old to new in `columns` (all metrics and costs by default). fail_on: see `thresholds`.

    Raises `ResultsError` if no cell is in both, `ParameterError` for a column that is not in both, an invalid
    threshold or a negative tolerance.
    """
    check_tolerance(tolerance)
    found = match(old, new)
    known = directions(found.pairs)
    limits = thresholds(fail_on, known) if fail_on is not None else []
    chosen = list(known) if columns is None else [known_column(name, known) for name in columns]
    chosen = list(dict.fromkeys([*chosen, *(limit.column for limit in limits)]))
    ran = [(before, after) for before, after in found.pairs if before.status == after.status == "ok"]
    costs = [name for name in chosen if name in COSTS]
    metrics = [name for name in chosen if name not in COSTS]
    every = [
        *_metric_changes(ran, metrics),
        *(change for name in metrics for change in _together_changes(ran, name, tolerance)),
        *(change for name in costs for change in cost_changes(ran, name, tolerance)),
    ]
    remarks = list(_remarks(found.repeated, ran, columns, every, costs, tolerance))
    return collected(found, every, limits, remarks)


def check_tolerance(tolerance: float) -> None:
    """Raise `ParameterError` unless the tolerance is 0 or more."""
    if not 0 <= tolerance < math.inf:
        raise ParameterError(f"tolerance must be 0 or more, got {tolerance}; {TOLERANCE} is usual")


def collected(
    found: Match, every: list[Change], limits: Sequence[Threshold], remarks: list[str], *, means_alone: bool = False
) -> Changes:
    """The changes of matched cells with the regressions among them. limits, means_alone: see `_passed`."""
    for change in every:
        change.passed = _passed(change, limits, means_alone)
    broken = [_reason(after) for before, after in found.pairs if before.status == "ok" != after.status]
    worse = [change for change in every if (change.passed if limits else change.verdict in REGRESSIONS)]
    return Changes(
        every,
        regressions=[*map(str, worse), *broken],
        broken=broken,
        mended=[_reason(before) for before, after in found.pairs if after.status == "ok" != before.status],
        only_old=list(map(described, found.only_old)),
        only_new=list(map(described, found.only_new)),
        remarks=remarks,
    )


def change_of(record: Record, column: str, unit: str, direction: str, old: float | None, new: float | None) -> Change:
    """A change of the cell of a record, without a kind yet."""
    where = record.solver, record.operator, record.noise, record.data, record.seed, *dtype_and_region(record)
    return Change(*where, len(record.images), column, unit, direction, old, new)


def _metric_changes(ran: Pairs, names: Sequence[str]) -> list[Change]:
    """The changes of metrics with their differences, intervals and tests."""
    made: list[Change] = []
    lengths: dict[int, list[tuple[Change, np.ndarray]]] = {}
    for name in names:
        for before, after in ran:
            if name not in before.values or name not in after.values:
                continue
            direction, unit = direction_and_unit(after, name)
            if (direction, unit) != direction_and_unit(before, name):
                continue
            change = change_of(after, name, unit, direction, mean(before.values[name]), mean(after.values[name]))
            made.append(change)
            if change.old is None or change.new is None:
                lost, gained = change.old is not None, change.new is not None
                change.verdict = "lost" if lost else "gained" if gained else "no number"
                continue
            differences = difference(_by_image(after, name), _by_image(before, name))
            if differences.any():
                change.verdict = "untested"
                lengths.setdefault(len(differences), []).append((change, differences))
            else:
                change.difference = change.lo = change.hi = 0.0
                change.verdict = "identical"
    fewest = _fewest_images({n_images: len(members) for n_images, members in lengths.items()})
    tested: list[tuple[Change, float, int]] = []
    for n_images, members in lengths.items():
        differences = np.stack([own for _, own in members])
        ends = zip(*interval_ends(differences, resamples=RESAMPLES), strict=True)
        for (change, own), (lo, hi) in zip(members, ends, strict=True):
            change.difference = mean(own.tolist())
            change.lo, change.hi = (None if math.isnan(end) else float(end) for end in (lo, hi))
        if n_images >= fewest:
            p, signs = signed_rank(differences)
            tested += zip((change for change, _ in members), p.tolist(), signs.tolist(), strict=True)
    for (change, p, sign), p_holm in zip(tested, holm(np.array([p for _, p, _ in tested])).tolist(), strict=True):
        change.p, change.p_holm, change.verdict = p, p_holm, _kind(change, p_holm, sign)
    return made


def _by_image(record: Record, name: str) -> np.ndarray:
    """The values of a metric, the images sorted by name."""
    order = sorted(range(len(record.images)), key=record.images.__getitem__)
    return np.array(record.values[name], dtype=float)[order]


def _fewest_images(counts: dict[int, int]) -> float:
    """The number of images above or at which changes are tested. counts: of changes, by number of images.

    Changes over fewer images cannot be significant among that many tests, and would reduce the power of the others.
    The choice depends on numbers of images and not on values, so Holm's correction remains valid.
    """
    for n_images in sorted(counts):
        if reachable(n_images, sum(count for other, count in counts.items() if other >= n_images)):
            return n_images
    return math.inf


def _kind(change: Change, p_holm: float, sign: int) -> ChangeKind:
    """Significant only if ranks and mean have the same sign."""
    if p_holm > LEVEL or change.difference is None or sign != np.sign(change.difference):
        return "within noise"
    if change.direction not in ("higher", "lower"):
        return "changed"
    return "better" if (sign > 0) == (change.direction == "higher") else "worse"


def _together_changes(ran: Pairs, name: str, tolerance: float) -> Iterator[Change]:
    """The changes of a metric of all images together, one number for each cell, where both have it."""
    for before, after in ran:
        direction, unit = direction_and_unit(after, name)
        if name not in before.together or name not in after.together:
            continue
        if (direction, unit) != direction_and_unit(before, name):
            continue
        old, new = before.together[name], after.together[name]
        change = change_of(after, name, unit, direction, old, new)
        change.difference = new - old
        change.verdict = "identical" if new == old else by_tolerance(change, tolerance)
        yield change


def by_tolerance(change: Change, tolerance: float) -> ChangeKind:
    """The kind of a change between two numbers without intervals."""
    old, new = change.old, change.new
    assert old is not None
    assert new is not None
    if abs(new - old) <= tolerance * abs(old):
        return "within tolerance"
    if change.direction not in ("higher", "lower"):
        return "changed"
    return "better" if (new > old) == (change.direction == "higher") else "worse"


def cost_changes(ran: Pairs, name: str, tolerance: float) -> Iterator[Change]:
    """The changes of a cost, for the cells that have it."""
    unit = {"seconds_per_image": "s", "peak_memory_mib": "MiB"}.get(name, "")
    less, more = ("faster", "slower") if unit == "s" else ("cheaper", "dearer")
    for before, after in ran:
        old, new = _cost(before, name), _cost(after, name)
        if old is not None and new is not None:
            change = change_of(after, name, unit, "lower", old, new)
            same = new <= old * (1 + tolerance) and old <= new * (1 + tolerance)
            change.difference = new - old
            change.verdict = "within tolerance" if same else more if new > old else less
            yield change


def _cost(record: Record, name: str) -> float | None:
    if name == "peak_memory_mib":
        return record.peak_memory_mib
    return (record.timing if name == "seconds_per_image" else record.counters).get(name)


def _passed(change: Change, limits: Sequence[Threshold], means_alone: bool) -> str:
    """The first threshold that a change exceeds; none if its interval contains 0, since it may be random, unless the
    means alone decide."""
    for limit in limits:
        if limit.column != change.column:
            continue
        if change.verdict == "lost":
            return str(limit)
        if change.old is None or change.new is None:
            continue
        random = not means_alone and change.lo is not None and change.hi is not None and change.lo <= 0 <= change.hi
        if limit.passed_by(change.old, change.new) and not random:
            return str(limit)
    return ""


def _reason(record: Record) -> str:
    """A cell without a result, and the reason."""
    return f"{described(record)}: {record.status}, {record.reason or 'no reason given'}"


def _remarks(
    repeated: int,
    ran: Pairs,
    metrics: Sequence[str] | None,
    every: Sequence[Change],
    costs: Sequence[str],
    tolerance: float,
) -> Iterator[str]:
    if repeated:
        yield f"not compared: {repeated} records that were replaced by a later one of the same cell"
    for side, other, label in ((0, 1, "OLD"), (1, 0, "NEW")):
        alone = {name for pair in ran for name in pair[side].values if name not in pair[other].values}
        if alone and metrics is None:
            yield f"for some cells only {label} has {', '.join(sorted(alone))}"
    both = {name for pair in ran for name in pair[0].values if name in pair[1].values}
    for name in sorted(both if metrics is None else both & set(metrics)):
        both_have = ((b, a) for b, a in ran if name in b.values and name in a.values)
        if any(direction_and_unit(b, name) != direction_and_unit(a, name) for b, a in both_have):
            yield f"{name} is not compared where its direction or unit differs"
    tests = sum(change.p is not None for change in every)
    untested = sum(change.verdict == "untested" for change in every)
    if tests:
        yield f"tests: signed-rank, level {LEVEL}, corrected for {tests} tests by Holm; intervals: 95%, uncorrected"
    if untested:
        images = images_to_test(tests + untested)
        yield (
            f"{untested} not tested: too few images to be significant among all changes; "
            f"that requires {images} images, or fewer columns (--metrics)"
        )
    if any(change.column in record.together for change in every for _, record in ran):
        yield (
            "metrics of all images together are one number per cell, without intervals; differences beyond "
            f"{100 * tolerance:g}% are changes"
        )
    moved = sum(_machine(before) != _machine(after) for before, after in ran)
    yield from remarks_on_costs(len(ran), moved, costs, tolerance)


def remarks_on_costs(ran: int, moved: int, costs: Sequence[str], tolerance: float) -> Iterator[str]:
    """What a reader of changed costs should know. ran: cells that ran in both. moved: those on other hardware."""
    if costs and ran:
        yield f"costs are one number per cell, without intervals; differences beyond {100 * tolerance:g}% are changes"
    if costs and moved:
        yield f"costs are not comparable for {moved} of the cells: they ran on different hardware"


def _machine(record: Record) -> tuple[Any, ...]:
    hardware = record.environment.get("hardware")
    known = hardware if isinstance(hardware, dict) else {}
    return record.environment.get("device"), known.get("processor"), known.get("torch_threads")
