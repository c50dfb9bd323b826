"""Assigns cells to workers. Cells of one problem stay together, so that the problem is set up once."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from cryobench.plan.grid import Cell, Plan


@dataclass
class QueuedCell:
    """A cell to run, with its plan."""

    plan: Plan
    cell: Cell

    @property
    def problem(self) -> Hashable:
        """Equal for cells that share a set-up."""
        cell = self.cell
        return cell.labels["operator"], cell.labels["noise"], cell.dataset.key, cell.seed, self.plan.request.dtype


class Queue:
    """Cells to run, grouped by problem, in their original order."""

    def __init__(self, cells: Iterable[QueuedCell]):
        self._waiting: dict[Hashable, deque[QueuedCell]] = {}
        for queued in cells:
            self._waiting.setdefault(queued.problem, deque()).append(queued)
        self._untouched = deque(self._waiting)
        self._last: dict[Hashable, Hashable] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def take(self, worker: Hashable) -> QueuedCell | None:
        """The next cell for a worker: of its current problem, or else of a problem that no worker has started, or else
        of the problem with the most waiting cells. None if the queue is empty."""
        problem = self._last.get(worker)
        while problem not in self._waiting and self._untouched:
            problem = self._untouched.popleft()
        if problem not in self._waiting:
            if not self._waiting:
                return None
            problem = max(self._waiting, key=lambda other: len(self._waiting[other]))
        self._last[worker] = problem
        waiting = self._waiting[problem]
        queued = waiting.popleft()
        if not waiting:
            del self._waiting[problem]
        return queued

    def put_back(self, queued: QueuedCell) -> None:
        """Return a cell that was taken and not finished; it becomes the first of its problem."""
        self._waiting.setdefault(queued.problem, deque()).appendleft(queued)
