"""Plans are run on workers, and records come back as cells are finished."""

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
from cryobench.runner import CellRunner, Observer, Remarks, describe, failed_record
from cryobench.sweep import worker
from cryobench.sweep.executors import ExecutorSpec, Workers, workers
from cryobench.sweep.job import Done, Job, Limits, Stopped
from cryobench.sweep.queue import Queue, QueuedCell
from cryobench.sweep.worker import Worker

DEATHS = 3
"""Workers that may die of a cell before it has failed."""
POLL = 0.5
"""Seconds between two looks at which workers there are."""


@dataclasses.dataclass(frozen=True)
class Order:
    """How plans are to be run. device: that of the workers. force: whether to run what is there already; retry_failed:
    whether to run again what failed or was skipped."""

    store: Results
    device: str
    force: bool = False
    retry_failed: bool = False
    limits: Limits = Limits()


def request_text(plan: Plan, device: str) -> str:
    """The request of a plan as JSON, for workers that have this device."""
    return json.dumps(dataclasses.asdict(plan.request) | {"device": device}, sort_keys=True)


def split(plans: Sequence[Plan], order: Order) -> tuple[list[Record], list[QueuedCell]]:
    """What is finished already, and what is to be run."""
    known, todo = [], []
    for plan in plans:
        runner = CellRunner(plan, order.store)
        for cell in plan.cells:
            record = None if order.force else runner.finished(cell, whatever_came=not order.retry_failed)
            if record is None:
                todo.append(QueuedCell(plan, cell))
            else:
                known.append(record)
    return known, todo


def sharded(plans: Sequence[Plan], part: int, of: int) -> list[Plan]:
    """Part 1, 2, ... of so many: as many cells as any other part, or one more; neighbours, which share a set-up."""
    cells = [(plan, cell) for plan in plans for cell in plan.cells]
    kept = {id(cell) for _, cell in cells[len(cells) * (part - 1) // of : len(cells) * part // of]}
    return [dataclasses.replace(plan, cells=[cell for cell in plan.cells if id(cell) in kept]) for plan in plans]


class SweepObserver(Observer):
    """What a caller may want to be told of a sweep."""

    def workers_done(self, seconds: Mapping[str, float]) -> None:
        """All cells are finished. seconds: what the workers' time went into; see `utilisation`."""


def run(
    plans: Sequence[Plan],
    order: Order,
    wanted: ExecutorSpec,
    observer: SweepObserver,
    hooks: Hooks,
    *,
    threads: int | None = None,
    options: Mapping[str, Any],
) -> Iterator[Record]:
    """The record of every cell of the plans, those that are there already first. options: what hooks are told.

    Raises `ResultsError` where records cannot be saved and `ExecutorError` where there are no workers any more; what
    was finished is saved.
    """
    records = []
    hooks.call("cryobench_run_started", cells=sum(len(plan.cells) for plan in plans), options=dict(options))
    for record in _run(plans, order, wanted, observer, threads):
        records.append(record)
        hooks.call("cryobench_record_added", record=record)
        yield record
    hooks.call("cryobench_run_finished", records=records)


def _run(
    plans: Sequence[Plan], order: Order, wanted: ExecutorSpec, observer: SweepObserver, threads: int | None
) -> Iterator[Record]:
    known, tasks = split(plans, order)
    for record in known:
        observer.cell_finished(record, reused=True)
        yield record
    if not tasks:
        return
    here = Worker(observer.cell_progress)
    for plan in plans:
        here.learn(request_text(plan, order.device), str(order.store.root.resolve()), plan)
    do = worker.run if order.limits else here.run
    with workers(wanted, device=order.device, threads=threads, do=do) as found:
        sweep = Sweep(order, found, observer)
        yield from sweep.run(tasks)
    observer.workers_done(sweep.seconds)


class Sweep:
    """Runs tasks on workers; iterate over `run`. seconds: what the workers' time went into; see `utilisation`."""

    def __init__(self, order: Order, workers: Workers, observer: Observer):
        self._order, self._workers, self._observer = order, workers, observer
        self._remarks: dict[int, Remarks] = {}
        self._requests: dict[int, str] = {}
        self._running: dict[Future[Done], tuple[Hashable, QueuedCell]] = {}
        self.seconds: dict[str, float] = {}
        self._worker_seconds = 0.0
        self._waited = False

    def run(self, tasks: Sequence[QueuedCell]) -> Iterator[Record]:
        """The record of each task when it is saved. A cell that fails, goes beyond its limits or kills its worker again
        and again has a failed record; `ResultsError` and `ExecutorError` end the sweep."""
        queue = Queue(tasks)
        start = time.perf_counter()
        while queue or self._running:
            names = self._workers.names()
            busy = {name for name, _ in self._running.values()}
            for name in names:
                if name not in busy and (task := queue.take(name)) is not None:
                    self._submit(name, task)
            now = time.perf_counter()
            self._worker_seconds += len(names) * (now - start)
            start = now
            if not self._running:
                self._await_workers()
            done, _ = wait(self._running, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in done:
                name, task = self._running.pop(future)
                record = self._collected(future, name, task, queue)
                if record is not None:
                    yield record
        self._worker_seconds += len(self._workers.names()) * (time.perf_counter() - start)
        self.seconds["idle"] = max(0.0, self._worker_seconds - sum(self.seconds.values()))

    def _await_workers(self) -> None:
        """There is none yet, or none at the moment."""
        if not self._waited:
            self._observer.warn("there is no worker at the moment; waiting for one")
        self._waited = True
        time.sleep(POLL)

    def _submit(self, name: Hashable, task: QueuedCell) -> None:
        if id(task.plan) not in self._requests:
            self._requests[id(task.plan)] = request_text(task.plan, self._order.device)
        job = Job(
            self._requests[id(task.plan)], task.cell.hash, str(self._order.store.root.resolve()), str(Path.cwd()),
            self._workers.threads, self._order.limits, self._order.force,
        )  # fmt: skip
        self._observer.cell_started(task.cell)
        self._running[self._workers.submit(name, job)] = name, task

    def _collected(self, future: Future[Done], name: Hashable, task: QueuedCell, queue: Queue) -> Record | None:
        """The record of a finished job; None for one that is to be tried again."""
        if future.cancelled():  # the connection to the workers was lost, and they may come back
            queue.put_back(task)
            return None
        error = future.exception()
        if isinstance(error, ResultsError | ExecutorError):
            raise error
        if error is None:
            done = future.result()
        elif isinstance(error, BrokenExecutor):
            self._workers.replace(name)
            task.deaths += 1
            if task.deaths < DEATHS:
                self._observer.warn(f"{_named(task.cell)}: its worker died; it is tried again")
                queue.put_back(task)
                return None
            done = self._failed(task, f"{DEATHS} workers died of it: out of memory, or a crash")
        else:
            done = self._failed(task, str(error) if isinstance(error, Stopped) else describe(error))
        for what, seconds in done.seconds.items():
            self.seconds[what] = self.seconds.get(what, 0.0) + seconds
        for warning in done.warnings:
            self._observer.warn(warning)
        record = dataclasses.replace(done.record, **task.cell.labels)
        remarks = self._remarks.setdefault(id(task.plan), Remarks(task.plan.request.save, self._observer))
        remarks.unavailable(record)
        self._observer.cell_finished(record, reused=done.reused)
        return record

    def _failed(self, task: QueuedCell, reason: str) -> Done:
        """What a worker could not tell itself. An earlier result is kept."""
        record = failed_record(task.plan, task.cell, reason)
        known = CellRunner(task.plan, self._order.store).finished(task.cell)
        if known is None:
            self._order.store.write(record)
        else:
            self._observer.warn(f"{_named(task.cell)}: the earlier result is kept")
        return Done(record, False, {})


def _named(cell: Cell) -> str:
    return f"{cell.labels['solver']} on {cell.labels['operator']}"
