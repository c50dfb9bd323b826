"""The objective of a search: the mean over problems of the mean over images of one metric column."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import NamedTuple

from cryobench.core import Metric
from cryobench.errors import ParameterError
from cryobench.plan import grid
from cryobench.plan.grid import Loaded, Plan
from cryobench.plan.suite import is_excluded
from cryobench.record import CLEAN, Record, numbers_of
from cryobench.registry import Registry, did_you_mean
from cryobench.results.store import Results
from cryobench.runner import CellRunner
from cryobench.tuning.problems import TuningTask

MIN_FINISHED = 5
"""Finished trials required before the median rule prunes."""


class NoScoreError(Exception):
    """A cell without a score, because it failed or has no finite value. The message is one line."""


@dataclass(frozen=True)
class Measure:
    """A metric column, the spec of its metric, and whether higher values are better."""

    by: str
    metric: str
    higher: bool


def measure_of(by: str, metrics: Sequence[str], registry: Registry) -> Measure:
    """The metric that has the column `by`. Raises `ParameterError` if none has it or it has no direction."""
    columns: dict[str, Measure] = {}
    for text in metrics:
        metric: Metric = registry.make("metrics", text)
        for column in metric.columns:
            for name in (column.name, *([column.name + CLEAN] if metric.against_truth else [])):
                if column.direction != "none":
                    columns[name] = Measure(name, text, column.direction == "higher")
    if by not in columns:
        raise ParameterError(
            f"--by {by!r} is not a column of these metrics; {did_you_mean(by, columns)} (--metric adds others)"
        )
    return columns[by]


class ProblemResult(NamedTuple):
    """The record of a solver on problem `number`. reused: whether the record was found in the store."""

    number: int
    record: Record
    reused: bool


@dataclass
class Objective:
    """The problems of a task, and the cells of a solver on them.

    Cells are saved in `store` and found there again, unless `force`. Images are read once, into `loaded`.
    """

    task: TuningTask
    measure: Measure
    registry: Registry
    store: Results
    force: bool = False
    loaded: Loaded = field(default_factory=dict)

    def plans(self, solver: str) -> list[Plan]:
        """The cells of a solver: each problem once, without those that the suite excludes."""
        seen: set[str] = set()
        found: list[Plan] = []
        for request in self.task.requests:
            full = dataclasses.replace(request, solvers=(solver,), metrics=(self.measure.metric,))
            plan = grid.plan(full, self.registry, self.loaded)
            cells = [cell for cell in plan.cells if cell.key not in seen and not is_excluded(cell, self.task.excluded)]
            seen |= {cell.key for cell in cells}
            found.append(dataclasses.replace(plan, cells=cells))
        if not seen:
            raise ParameterError(f"the suite's exclude rules leave nothing to tune {solver} on")
        return found

    def results(self, solver: str, left_out: Container[int], *, retry_failed: bool) -> Iterator[ProblemResult]:
        """Run a solver on the problems in turn, except those whose numbers are `left_out`."""
        number = -1
        for plan in self.plans(solver):
            runner = CellRunner(plan, self.store)
            for cell in plan.cells:
                number += 1
                if number in left_out:
                    continue
                known = None if self.force else runner.finished(cell, include_failed=True)
                if retry_failed and known is not None and known.status == "failed":
                    known = None
                yield ProblemResult(number, known or runner.run(cell, force=self.force), reused=known is not None)

    def score(self, record: Record) -> float:
        """The mean over the images. Raises `NoScoreError` for a failed cell or a missing or infinite value."""
        if record.status == "failed":
            raise NoScoreError(described(record))
        by, values = self.measure.by, numbers_of(record, self.measure.by)
        if values is None:
            why = record.unmeasured.get(by, "the clean images are unknown")
            raise NoScoreError(described(record, f"no {by}, because {why}"))
        score = fmean(values)
        if not math.isfinite(score):
            raise NoScoreError(described(record, record.unmeasured.get(by) or f"{by} is {score}"))
        return score


def described(record: Record, reason: str = "") -> str:
    """The problem of a record and a reason, by default the record's own."""
    return f"{record.operator}, noise {record.noise}, {record.data}: {reason or record.reason}"


def seconds_of(record: Record) -> float:
    """The time that a cell took."""
    return sum(record.timing.get(name, 0.0) for name in ("setup_seconds", "solver_seconds", "score_seconds"))


def evaluations_of(record: Record) -> float:
    """Network evaluations of a cell: images times NFE."""
    return record.counters.get("nfe", 0.0) * len(record.images)


def worse_than_median(scores: Sequence[float], finished: Sequence[Sequence[float]], measure: Measure) -> bool:
    """The median rule: whether the mean of these first scores is worse than the median, over finished trials, of their
    means over the same problems.

    Optuna's median pruner compares the best step of a trial, which the easiest problem would decide.
    """
    if len(finished) < MIN_FINISHED:
        return False
    middle = median(fmean(each[: len(scores)]) for each in finished)
    return fmean(scores) < middle if measure.higher else fmean(scores) > middle
