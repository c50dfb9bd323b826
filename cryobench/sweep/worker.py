"""A worker: plans each request once and runs its jobs one at a time."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cryobench.errors import CryobenchError, ExecutorError
from cryobench.sweep.job import Done, Job

if TYPE_CHECKING:
    from cryobench.plan.grid import Cell, Loaded, Plan
    from cryobench.runner import CellRunner

_one_at_a_time = threading.Lock()
"""torch's default dtype and random state are global to the process, so cells must not run in parallel threads."""


def run(job: Job) -> Done:
    """Run a job in this process, or in a child process if the job has limits. Raises `ExecutorError` if this worker
    plans other cells, `ResultsError` if the record cannot be saved, and `Stopped` beyond a limit."""
    with _one_at_a_time:
        if job.limits:
            from cryobench.sweep.guard import guard

            return guard().run(job, prepare, run)
        return _worker().run(job)


def prepare(job: Job) -> None:
    """Read the data of a job, so that reading does not count towards its time limit."""
    with _within(job.folder):
        _worker().planned(job)


@cache
def _worker() -> Worker:
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
        self._known[request, results] = runner, {cell.hash: cell for cell in plan.cells}

    def planned(self, job: Job) -> tuple[CellRunner, dict[str, Cell]]:
        """The runner of a job's request, and its cells by hash."""
        from cryobench.plan import grid
        from cryobench.registry import installed

        if job.threads is not None:
            import torch

            torch.set_num_threads(job.threads)
        if (job.request, job.results) not in self._known:
            try:
                plan = grid.plan(grid.Request(**json.loads(job.request)), installed(), self._loaded)
            except CryobenchError as error:
                raise ExecutorError(f"the worker on {platform.node()} cannot run the request: {error}") from error
            self.add_plan(job.request, job.results, plan)
        return self._known[job.request, job.results]

    def run(self, job: Job) -> Done:
        """Run the cell of a job, or find it in the results folder, where another process may have saved it."""
        self._warnings.clear()
        start = time.perf_counter()
        with _within(job.folder):
            runner, cells = self.planned(job)
            reading = time.perf_counter() - start
            if job.hash not in cells:
                raise ExecutorError(
                    f"the worker on {platform.node()} plans other cells for the same request: install the same "
                    "versions there, and keep data and weights in a folder that all machines share"
                )
            before = Counter(runner.seconds)
            record = None if job.force else runner.finished(cells[job.hash])
            reused = record is not None
            if record is None:
                record = runner.run(cells[job.hash])
        spent = {phase: seconds - before[phase] for phase, seconds in runner.seconds.items()}
        return Done(record, reused, spent | {"reading": reading}, tuple(self._warnings))


def _within(folder: str) -> contextlib.AbstractContextManager[None]:
    """Change to a folder, for relative paths."""
    if os.path.realpath(folder) == os.path.realpath(os.curdir):
        return contextlib.nullcontext()
    if not Path(folder).is_dir():
        raise ExecutorError(f"the worker on {platform.node()} has no folder {folder}; workers must share it")
    return contextlib.chdir(folder)
