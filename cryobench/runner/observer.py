"""Who watches a run."""

from __future__ import annotations

from cryobench.plan.grid import Cell
from cryobench.record import Record


class Observer:
    """What a caller may want to be told. Every method may be left as it is."""

    def cell_started(self, cell: Cell) -> None:
        """A cell begins."""

    def cell_progress(self, fraction: float) -> None:
        """The cell under way has come this far, 0 to 1."""

    def cell_finished(self, record: Record, *, reused: bool) -> None:
        """A cell's record is saved, or was found saved."""

    def warn(self, message: str) -> None:
        """Something worth knowing that stops nothing."""
