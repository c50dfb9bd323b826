"""A worker: plans each request once and runs its jobs one at a time."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from cryobench.errors import CryobenchError, ExecutorError
from cryobench.record import Record
from cryobench.workers.job import Job

if TYPE_CHECKING:
    from cryobench.plan.grid import Cell, Loaded, Plan
    from cryobench.runner import CellRunner


@dataclass(frozen=True, kw_only=True)
class CellJob(Job):
    """One cell to run. request: its `grid.Request` as JSON. key: of the cell. results: folder for its record. force:
    run the cell even if it is in the results folder."""

    request: str
    key: str
    results: str
    force: bool = False

    def prepare(self) -> None:
        """Plan, so that reading small data does not count towards the time limit."""
        this_worker().planned(self)

    def run(self) -> Done:
        """Run the cell. Raises `ExecutorError` if this worker plans other cells, `ResultsError` if the record cannot be
        saved."""
        return this_worker().run(self)


@dataclass(frozen=True)
class Done:
    """The saved record of a cell. reused: whether it was found in the results folder. seconds: worker time by category
    (see `utilisation`). warnings: messages for the user."""

    record: Record
    reused: bool
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()


@cache
def this_worker() -> Worker:
    """The worker of this process."""
    return Worker()


class Worker:
    """Caches what jobs share: data, plans, networks, and the last problem.

    progress: called with the finished fraction of a cell, 0 to 1.
    """

    def __init__(self, progress: Callable[[float], None] = lambda fraction: None):
        self._progress = progress
        self._warnings: list[str] = []
        self._known: dict[tuple[str, str], tuple[CellRunner, dict[str, Cell]]] = {}
        self._loaded: Loaded = {}

    def add_plan(self, request: str, results: str, plan: Plan) -> None:
        """Add an existing plan."""
        from cryobench.results.store import Results
        from cryobench.runner import CellRunner, Observer

        progress, warnings = self._progress, self._warnings

        class Listener(Observer):
            def cell_progress(self, fraction: float) -> None:
                progress(fraction)

            def warn(self, message: str) -> None:
                warnings.append(message)

        runner = CellRunner(plan, Results(results), Listener())
        self._known[request, results] = runner, {cell.key: cell for cell in plan.cells}

    def planned(self, job: CellJob) -> tuple[CellRunner, dict[str, Cell]]:
        """The runner of a job's request, and its cells by key."""
        from cryobench.plan import grid
        from cryobench.registry import installed

        if (job.request, job.results) not in self._known:
            try:
                plan = grid.plan(grid.Request(**json.loads(job.request)), installed(), self._loaded)
            except CryobenchError as error:
                raise ExecutorError(f"the worker on {platform.node()} cannot run the request: {error}") from error
            self.add_plan(job.request, job.results, plan)
        return self._known[job.request, job.results]

    def run(self, job: CellJob) -> Done:
        """Run the cell of a job, or find it in the results folder, where another process may have saved it."""
        self._warnings.clear()
        start = time.perf_counter()
        runner, cells = self.planned(job)
        reading = time.perf_counter() - start
        if job.key not in cells:
            raise ExecutorError(
                f"the worker on {platform.node()} plans other cells for the same request: install the same "
                "versions there, and keep data and weights in a folder that all machines share"
            )
        before = Counter(runner.seconds)
        record = None if job.force else runner.finished(cells[job.key])
        reused = record is not None
        if record is None:
            record = runner.run(cells[job.key], force=job.force)
        spent = {phase: seconds - before[phase] for phase, seconds in runner.seconds.items()}
        return Done(record, reused, spent | {"reading": spent["reading"] + reading}, tuple(self._warnings))
