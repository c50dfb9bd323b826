"""How long tasks will take, by what earlier cells took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from cryobench.record import Record
from cryobench.sweep.queue import QueuedCell

Key = tuple[str, ...]


class Times:
    """Seconds an image that solvers took in earlier records, on images of the same size."""

    def __init__(self, records: Iterable[Record]):
        self._seen: dict[Key, list[float]] = defaultdict(list)
        for record in records:
            seconds = record.timing.get("seconds_per_image")
            if record.status == "ok" and seconds is not None:
                shape = str(tuple(record.problem.get("image_shape", ())))
                for key in ((record.solver, shape, record.operator), (record.solver, shape)):
                    self._seen[key].append(seconds)

    def of(self, task: QueuedCell) -> float | None:
        """Seconds for a task: the median over earlier cells of its solver on the same operator, else on any. None where
        there was none."""
        cell = task.cell
        solver, shape = cell.labels["solver"], str(cell.dataset.shape)
        for key in ((solver, shape, cell.labels["operator"]), (solver, shape)):
            if key in self._seen:
                return median(self._seen[key]) * len(cell.dataset.ids)
        return None

    def total(self, tasks: Sequence[QueuedCell]) -> tuple[float, int]:
        """Seconds for all tasks that something is known of; and how many are not."""
        found = [self.of(task) for task in tasks]
        return sum(seconds for seconds in found if seconds is not None), found.count(None)
