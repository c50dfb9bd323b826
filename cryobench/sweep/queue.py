"""Which cell goes to which worker next: cells of one problem stay together, so that it is set up once."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from cryobench.plan.grid import Cell, Plan


@dataclass
class QueuedCell:
    """A cell of a plan that is to be run. deaths: of workers that had it."""

    plan: Plan
    cell: Cell
    deaths: int = 0

    @property
    def problem(self) -> Hashable:
        """What the cells that share a set-up have in common."""
        cell = self.cell
        return cell.labels["operator"], cell.labels["noise"], cell.dataset.digest, cell.seed, self.plan.request.dtype


class Queue:
    """Tasks by problem, in the order in which they came."""

    def __init__(self, tasks: Iterable[QueuedCell]):
        self._waiting: dict[Hashable, deque[QueuedCell]] = {}
        for task in tasks:
            self._waiting.setdefault(task.problem, deque()).append(task)
        self._untouched = deque(self._waiting)
        self._last: dict[Hashable, Hashable] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def take(self, worker: Hashable) -> QueuedCell | None:
        """The next task for a worker: of the problem it has at hand, else of one that nobody has, else of the one with
        most tasks waiting. None where there is none."""
        problem = self._last.get(worker)
        while problem not in self._waiting and self._untouched:
            problem = self._untouched.popleft()
        if problem not in self._waiting:
            if not self._waiting:
                return None
            problem = max(self._waiting, key=lambda other: len(self._waiting[other]))
        self._last[worker] = problem
        tasks = self._waiting[problem]
        task = tasks.popleft()
        if not tasks:
            del self._waiting[problem]
        return task

    def put_back(self, task: QueuedCell) -> None:
        """A task that was taken and not done is the next of its problem."""
        self._waiting.setdefault(task.problem, deque()).appendleft(task)
