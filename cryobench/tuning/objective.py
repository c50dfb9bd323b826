"""The score of a setting: the mean over problems of the mean of a metric column over the images of each."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import NamedTuple

from cryobench import runner
from cryobench.core import Metric
from cryobench.errors import ParameterError
from cryobench.plan import grid
from cryobench.plan.grid import Loaded, Plan
from cryobench.plan.suite import excluded
from cryobench.record import CLEAN, Record
from cryobench.registry import Registry, did_you_mean
from cryobench.tuning.problems import Task

AMONG = 5
"""Finished trials before one is given up for being worse than their median."""


class Unscored(Exception):
    """A cell that failed, or has no number: the setting has no score. Says why, in a line."""


class Scored(NamedTuple):
    """A problem solved: the mean over its images, and the network evaluations that it took. Without a score it was
    skipped, for a reason."""

    score: float | None
    evaluations: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Measure:
    """A metric column, the metric that has it, and which way is better."""

    by: str
    metric: str
    higher: bool


def measure_of(by: str, metrics: Sequence[str], registry: Registry) -> Measure:
    """Which of these metrics has the column `by`. Raises `ParameterError` where none has, or it says no direction."""
    columns: dict[str, Measure] = {}
    for text in metrics:
        metric: Metric = registry.make("metrics", text)
        for column in metric.columns:
            for name in (column.name, *([column.name + CLEAN] if metric.against_truth else [])):
                if column.direction != "none":
                    columns[name] = Measure(name, text, column.direction == "higher")
    if by not in columns:
        raise ParameterError(
            f"--by {by!r} is no column of these metrics; {did_you_mean(by, columns)} (--metric takes others)"
        )
    return columns[by]


@dataclass
class Objective:
    """The problems of a task, and a solver's scores on them. Images are read once, into `loaded`."""

    task: Task
    measure: Measure
    registry: Registry
    loaded: Loaded = field(default_factory=dict)

    def plans(self, solver: str) -> list[Plan]:
        """A solver's cells, each problem once, those that the suite excludes left out."""
        seen: set[str] = set()
        found: list[Plan] = []
        for request in self.task.requests:
            asked = dataclasses.replace(request, solvers=(solver,), metrics=(self.measure.metric,))
            plan = grid.plan(asked, self.registry, self.loaded)
            cells = [cell for cell in plan.cells if cell.hash not in seen and not excluded(cell, self.task.excluded)]
            seen |= {cell.hash for cell in cells}
            found.append(dataclasses.replace(plan, cells=cells))
        if not seen:
            raise ParameterError(f"the suite's exclude rules leave nothing to tune {solver} on")
        return found

    def scores(self, solver: str, left_out: Collection[int] = ()) -> Iterator[Scored]:
        """The scores of the problems in turn, but for those of these numbers. Raises `Unscored` at the first that
        failed.

        Nothing is saved: trials are no results, and would be found among them.
        """
        number = itertools.count()
        for plan in self.plans(solver):
            taken = [cell for cell in plan.cells if next(number) not in left_out]
            for record in runner.execute(dataclasses.replace(plan, cells=taken)):
                yield self._scored(record)

    def _scored(self, record: Record) -> Scored:
        where = f"{record.operator}, noise {record.noise}, {record.data}"
        if record.status == "skipped":
            return Scored(None, reason=f"{where}: {record.reason}")
        if record.status == "failed":
            raise Unscored(f"{where}: {record.reason}")
        values = record.values.get(self.measure.by)
        if values is None:
            raise Unscored(f"{where}: no {self.measure.by}, for its clean images are not known")
        score = fmean(values)
        if not math.isfinite(score):
            raise Unscored(f"{where}: {record.unmeasured.get(self.measure.by) or f'{self.measure.by} is {score}'}")
        return Scored(score, record.counters.get("nfe", 0.0) * len(record.images))


def falls_behind(scores: Sequence[float], finished: Sequence[Sequence[float]], measure: Measure) -> bool:
    """The median rule: whether the mean over the problems so far is worse than the median of what finished trials had
    there.

    Optuna's pruner compares the best step of a trial, which an easy first problem would decide.
    """
    if len(finished) < AMONG:
        return False
    middle = median(fmean(each[: len(scores)]) for each in finished)
    return fmean(scores) < middle if measure.higher else fmean(scores) > middle
