"""Callbacks of a run."""

from __future__ import annotations

from cryobench.plan.grid import Cell
from cryobench.record import Record


class Observer:
    """Receives the events of a run. Every method does nothing by default."""

    def cell_started(self, cell: Cell) -> None:
        """A cell starts."""

    def cell_progress(self, fraction: float) -> None:
        """The progress of the running cell, 0 to 1."""

    def cell_finished(self, record: Record, *, reused: bool) -> None:
        """A record was saved, or (`reused`) found in the results folder."""

    def warn(self, message: str) -> None:
        """A warning that does not stop the run."""
