"""Estimates of run times from the times of earlier cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from cryobench.record import Record
from cryobench.sweep.queue import QueuedCell

Key = tuple[str, ...]


class Times:
    """Seconds per image of each solver in earlier records, on images of the same size."""

    def __init__(self, records: Iterable[Record]):
        self._seen: dict[Key, list[float]] = defaultdict(list)
        for record in records:
            seconds = record.timing.get("seconds_per_image")
            if record.status == "ok" and seconds is not None:
                shape = str(tuple(record.problem.get("image_shape", ())))
                for key in ((record.solver, shape, record.operator), (record.solver, shape)):
                    self._seen[key].append(seconds)

    def of(self, queued: QueuedCell) -> float | None:
        """Seconds for a cell: the median over earlier cells of its solver on the same operator, or else on any
        operator; None if there are none."""
        cell = queued.cell
        solver, shape = cell.labels["solver"], str(cell.dataset.shape)
        for key in ((solver, shape, cell.labels["operator"]), (solver, shape)):
            if key in self._seen:
                return median(self._seen[key]) * len(cell.dataset.ids)
        return None

    def total(self, todo: Sequence[QueuedCell]) -> tuple[float, int]:
        """Seconds for all cells with an estimate, and the number of cells without one."""
        found = [self.of(queued) for queued in todo]
        return sum(seconds for seconds in found if seconds is not None), found.count(None)
