"""Runs plans on workers and yields records as cells finish."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from pathlib import Path
from typing import Any

from cryobench.errors import ExecutorError, ResultsError
from cryobench.hooks import Hooks
from cryobench.plan.grid import Cell, Plan
from cryobench.record import Record
from cryobench.results.store import Results
from cryobench.runner import CellRunner, MissingFileWarnings, Observer, describe, failed_record
from cryobench.sweep import worker
from cryobench.sweep.executors import ExecutorSpec, Workers, workers
from cryobench.sweep.job import Done, Job, Limits, Stopped
from cryobench.sweep.queue import Queue, QueuedCell
from cryobench.sweep.worker import Worker

DEATHS = 3
"""Number of workers that may die while running a cell before it counts as failed."""
POLL = 0.5
"""Seconds between two queries of the present workers."""


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
    run_here = worker.run if options.limits else here.run
    with workers(executor, device=options.device, threads=threads, run_here=run_here) as found:
        sweep = Sweep(options, found, observer)
        yield from sweep.run(todo)
    observer.workers_done(sweep.seconds)


class Sweep:
    """Runs cells on workers; iterate over `run`. seconds: worker time by category; see `utilisation`."""

    def __init__(self, options: SweepOptions, workers: Workers, observer: Observer):
        self._options, self._workers, self._observer = options, workers, observer
        self._missing_files: dict[int, MissingFileWarnings] = {}
        self._requests: dict[int, str] = {}
        self._running: dict[Future[Done], tuple[Hashable, QueuedCell]] = {}
        self.seconds: dict[str, float] = {}
        self._worker_seconds = 0.0
        self._waited = False

    def run(self, todo: Sequence[QueuedCell]) -> Iterator[Record]:
        """The record of each cell when it is saved. A cell that fails, exceeds its limits or kills `DEATHS` workers has
        a failed record; `ResultsError` and `ExecutorError` end the sweep."""
        queue = Queue(todo)
        start = time.perf_counter()
        while queue or self._running:
            names = self._workers.names()
            busy = {name for name, _ in self._running.values()}
            for name in names:
                if name not in busy and (queued := queue.take(name)) is not None:
                    self._submit(name, queued)
            now = time.perf_counter()
            self._worker_seconds += len(names) * (now - start)
            start = now
            if not self._running:
                self._await_workers()
            done, _ = wait(self._running, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in done:
                name, queued = self._running.pop(future)
                record = self._collected(future, name, queued, queue)
                if record is not None:
                    yield record
        self._worker_seconds += len(self._workers.names()) * (time.perf_counter() - start)
        self.seconds["idle"] = max(0.0, self._worker_seconds - sum(self.seconds.values()))

    def _await_workers(self) -> None:
        """Sleep while there is no worker; warn the first time."""
        if not self._waited:
            self._observer.warn("no worker is available; waiting for one")
        self._waited = True
        time.sleep(POLL)

    def _submit(self, name: Hashable, queued: QueuedCell) -> None:
        if id(queued.plan) not in self._requests:
            self._requests[id(queued.plan)] = request_text(queued.plan, self._options.device)
        job = Job(
            self._requests[id(queued.plan)], queued.cell.hash, str(self._options.store.root.resolve()), str(Path.cwd()),
            self._workers.threads, self._options.limits, self._options.force,
        )  # fmt: skip
        self._observer.cell_started(queued.cell)
        self._running[self._workers.submit(name, job)] = name, queued

    def _collected(self, future: Future[Done], name: Hashable, queued: QueuedCell, queue: Queue) -> Record | None:
        """The record of a finished job; None if the cell goes back to the queue."""
        if future.cancelled():  # the connection to the workers was lost and may return
            queue.put_back(queued)
            return None
        error = future.exception()
        if isinstance(error, ResultsError | ExecutorError):
            raise error
        if error is None:
            done = future.result()
        elif isinstance(error, BrokenExecutor):
            self._workers.replace(name)
            queued.deaths += 1
            if queued.deaths < DEATHS:
                self._observer.warn(f"{_named(queued.cell)}: its worker died; running it again")
                queue.put_back(queued)
                return None
            done = self._failed(queued, f"{DEATHS} workers died while running it: out of memory, or a crash")
        else:
            done = self._failed(queued, str(error) if isinstance(error, Stopped) else describe(error))
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


def _named(cell: Cell) -> str:
    return f"{cell.labels['solver']} on {cell.labels['operator']}"
