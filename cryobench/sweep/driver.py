"""Runs plans on workers and yields records as cells finish."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryobench.hooks import Hooks
from cryobench.plan.grid import Cell, Plan
from cryobench.record import Record
from cryobench.results.store import Results
from cryobench.runner import CellRunner, MissingFileWarnings, Observer, describe, failed_record
from cryobench.sweep.queue import Queue, QueuedCell
from cryobench.sweep.worker import CellJob, Done, Worker
from cryobench.workers.executors import ExecutorSpec, Workers, workers
from cryobench.workers.job import Limits, Stopped
from cryobench.workers.pool import DEATHS, Failure, Pool
from cryobench.workers.running import run as run_job


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """How to run plans. device: of the workers. force: run saved cells again. retry_failed: run failed and skipped
    cells again."""

    store: Results
    device: str
    force: bool = False
    retry_failed: bool = False
    limits: Limits = Limits()


def request_text(plan: Plan, device: str) -> str:
    """The request of a plan as JSON, for workers on this device."""
    return json.dumps(dataclasses.asdict(plan.request) | {"device": device}, sort_keys=True)


def split(plans: Sequence[Plan], options: SweepOptions) -> tuple[list[Record], list[QueuedCell]]:
    """The saved records of the plans, and the cells to run."""
    known, todo = [], []
    for plan in plans:
        runner = CellRunner(plan, options.store)
        for cell in plan.cells:
            record = None if options.force else runner.finished(cell, include_failed=not options.retry_failed)
            if record is None:
                todo.append(QueuedCell(plan, cell))
            else:
                known.append(record)
    return known, todo


def sharded(plans: Sequence[Plan], part: int, of: int) -> list[Plan]:
    """Shard `part` of 1..of: equal numbers of cells, to within one, that are consecutive and so share set-ups."""
    cells = [(plan, cell) for plan in plans for cell in plan.cells]
    kept = {id(cell) for _, cell in cells[len(cells) * (part - 1) // of : len(cells) * part // of]}
    return [dataclasses.replace(plan, cells=[cell for cell in plan.cells if id(cell) in kept]) for plan in plans]


class SweepObserver(Observer):
    """Callbacks of a sweep. Override any of them."""

    def workers_done(self, seconds: Mapping[str, float]) -> None:
        """All cells are finished. seconds: worker time by category; see `utilisation`."""


def run(
    plans: Sequence[Plan],
    options: SweepOptions,
    executor: ExecutorSpec,
    observer: SweepObserver,
    hooks: Hooks,
    *,
    threads: int | None = None,
    hook_options: Mapping[str, Any],
) -> Iterator[Record]:
    """The record of every cell of the plans, saved ones first. hook_options: passed to the hooks.

    Raises `ResultsError` if records cannot be saved and `ExecutorError` if no workers are left; finished cells are
    saved in both cases.
    """
    records = []
    hooks.call("cryobench_run_started", cells=sum(len(plan.cells) for plan in plans), options=dict(hook_options))
    for record in _run(plans, options, executor, observer, threads):
        records.append(record)
        hooks.call("cryobench_record_added", record=record)
        yield record
    hooks.call("cryobench_run_finished", records=records)


def _run(
    plans: Sequence[Plan], options: SweepOptions, executor: ExecutorSpec, observer: SweepObserver, threads: int | None
) -> Iterator[Record]:
    known, todo = split(plans, options)
    for record in known:
        observer.cell_finished(record, reused=True)
        yield record
    if not todo:
        return
    here = Worker(observer.cell_progress)
    for plan in plans:
        here.add_plan(request_text(plan, options.device), str(options.store.root.resolve()), plan)
    with workers(
        executor, device=options.device, threads=threads, run_here=lambda job: run_job(job, here.run)
    ) as found:
        sweep = Sweep(options, found, observer)
        yield from sweep.run(todo)
    observer.workers_done(sweep.seconds)


class Sweep:
    """Runs cells on workers; iterate over `run`. seconds: worker time by category; see `utilisation`."""

    def __init__(self, options: SweepOptions, workers: Workers, observer: Observer):
        self._options, self._workers, self._observer = options, workers, observer
        self._missing_files: dict[int, MissingFileWarnings] = {}
        self._requests: dict[int, str] = {}
        self.seconds: dict[str, float] = {}

    def run(self, todo: Sequence[QueuedCell]) -> Iterator[Record]:
        """The record of each cell when it is saved. A cell that fails, exceeds its limits or kills `DEATHS` workers has
        a failed record; `ResultsError` and `ExecutorError` end the sweep."""
        pool = Pool(self._workers, self._job, lambda queued: _named(queued.cell), self._observer.warn)
        for queued, outcome in pool.run(Queue(todo), lambda queued, worker: self._observer.cell_started(queued.cell)):
            yield self._collected(queued, outcome)
        self.seconds["idle"] = max(0.0, pool.worker_seconds - sum(self.seconds.values()))

    def _job(self, queued: QueuedCell) -> CellJob:
        if id(queued.plan) not in self._requests:
            self._requests[id(queued.plan)] = request_text(queued.plan, self._options.device)
        options = self._options
        return CellJob(
            folder=str(Path.cwd()), threads=self._workers.threads, limits=options.limits, force=options.force,
            request=self._requests[id(queued.plan)], key=queued.cell.key, results=str(options.store.root.resolve()),
        )  # fmt: skip

    def _collected(self, queued: QueuedCell, outcome: Done | Failure) -> Record:
        """The record of a finished job."""
        done = self._failed(queued, _reason(outcome)) if isinstance(outcome, Failure) else outcome
        for what, seconds in done.seconds.items():
            self.seconds[what] = self.seconds.get(what, 0.0) + seconds
        for warning in done.warnings:
            self._observer.warn(warning)
        record = dataclasses.replace(done.record, **queued.cell.labels)
        missing = MissingFileWarnings(queued.plan.request.save, self._observer)
        self._missing_files.setdefault(id(queued.plan), missing).check(record)
        self._observer.cell_finished(record, reused=done.reused)
        return record

    def _failed(self, queued: QueuedCell, reason: str) -> Done:
        """Save a failed record for a cell whose worker could not. An earlier result is kept."""
        record = failed_record(queued.plan, queued.cell, reason)
        known = CellRunner(queued.plan, self._options.store).finished(queued.cell)
        if known is None:
            self._options.store.write(record)
        else:
            self._observer.warn(f"{_named(queued.cell)}: the earlier result is kept")
        return Done(record, False, {})


def _reason(failure: Failure) -> str:
    if failure.error is None:
        return f"{DEATHS} workers died while running it: out of memory, or a crash"
    return str(failure.error) if isinstance(failure.error, Stopped) else describe(failure.error)


def _named(cell: Cell) -> str:
    return f"{cell.labels['solver']} on {cell.labels['operator']}"
