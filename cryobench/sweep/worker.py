"""What a worker does with a job: it plans the request once, and runs the cells that it is asked for one at a time."""

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
"""torch's default dtype and random state belong to a process: cells in threads of it would disturb each other."""


def run(job: Job) -> Done:
    """Run a job in this process, or in one of its own where it has limits. Raises `ExecutorError` where this worker
    does not get the same cell, `ResultsError` where the record cannot be saved, `Stopped` beyond a limit."""
    with _one_at_a_time:
        if job.limits:
            from cryobench.sweep.guard import guard

            return guard().run(job)
        return _worker().run(job)


def prepare(job: Job) -> None:
    """Read the data of a job, so that they do not count as its own time."""
    with _within(job.folder):
        _worker().planned(job)


@cache
def _worker() -> Worker:
    """The worker of this process."""
    return Worker()


class Worker:
    """Keeps what jobs have in common: data, plans, networks, and the problem that was measured last.

    progress: told how far a cell has come, 0 to 1.
    """

    def __init__(self, progress: Callable[[float], None] = lambda fraction: None):
        self._progress = progress
        self._warnings: list[str] = []
        self._known: dict[tuple[str, str], tuple[CellRunner, dict[str, Cell]]] = {}
        self._loaded: Loaded = {}

    def learn(self, request: str, results: str, plan: Plan) -> None:
        """Take a plan that was made already."""
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
        """The cells of a job's request by hash, and what runs them."""
        from cryobench.plan import grid
        from cryobench.registry import installed

        if job.threads is not None:
            import torch

            torch.set_num_threads(job.threads)
        if (job.request, job.results) not in self._known:
            try:
                plan = grid.plan(grid.Request(**json.loads(job.request)), installed(), self._loaded)
            except CryobenchError as error:
                raise ExecutorError(f"the worker on {platform.node()} cannot do what it is asked: {error}") from error
            self.learn(job.request, job.results, plan)
        return self._known[job.request, job.results]

    def run(self, job: Job) -> Done:
        """Run the cell of a job, or find it in the results folder, where somebody else may have put it meanwhile."""
        self._warnings.clear()
        start = time.perf_counter()
        with _within(job.folder):
            runner, cells = self.planned(job)
            reading = time.perf_counter() - start
            if job.hash not in cells:
                raise ExecutorError(
                    f"the worker on {platform.node()} makes another cell of the same request: install the same "
                    "versions there, and keep data and weights in a folder that all machines see"
                )
            before = Counter(runner.seconds)
            record = None if job.again else runner.finished(cells[job.hash])
            reused = record is not None
            if record is None:
                record = runner.run(cells[job.hash])
        spent = {phase: seconds - before[phase] for phase, seconds in runner.seconds.items()}
        return Done(record, reused, spent | {"reading": reading}, tuple(self._warnings))


def _within(folder: str) -> contextlib.AbstractContextManager[None]:
    """Work in a folder, for the sake of relative paths."""
    if os.path.realpath(folder) == os.path.realpath(os.curdir):
        return contextlib.nullcontext()
    if not Path(folder).is_dir():
        raise ExecutorError(f"the worker on {platform.node()} has no folder {folder}; workers need a shared folder")
    return contextlib.chdir(folder)
