"""The live view of a sweep: running cells, speed, failures, and the best results so far."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from cryobench.cli.output import rich_text
from cryobench.cli.progress import ProgressObserver, duration
from cryobench.cli.watch import note_cell
from cryobench.leaderboard.statistics.bootstrap import mean
from cryobench.plan.grid import Cell
from cryobench.record import Record

ROWS = 8
"""Maximum rows of each table."""


@contextmanager
def watching(cells: int, by: str, *, live: bool, quiet: bool) -> Iterator[ProgressObserver]:
    """A dashboard if requested on a terminal; otherwise progress bars or lines."""
    console = Console(stderr=True)
    if live and console.is_terminal and not quiet:
        dashboard = Dashboard(cells, by)
        with Live(get_renderable=dashboard.shown, console=console, refresh_per_second=2):
            yield dashboard
    else:
        with ProgressObserver(cells, quiet) as observer:
            yield observer


class Dashboard(ProgressObserver):
    """The dashboard of `cryobench sweep --live`, with the last warnings and failures."""

    def __init__(self, cells: int, by: str):
        super().__init__(cells, quiet=True)
        self._by = by
        self._start = time.monotonic()
        self._running: dict[tuple[str | int, ...], tuple[Cell, float]] = {}
        self._done = dict.fromkeys(("ok", "skipped", "failed"), 0)
        self._best: dict[str, tuple[float, Record]] = {}
        self._floors: dict[str, str] = {}
        self._warnings: list[str] = []

    def cell_started(self, cell: Cell) -> None:
        note_cell(f"{cell.labels['solver']} on {cell.labels['operator']}")
        name = *(cell.labels[part] for part in ("solver", "operator", "noise", "data")), cell.seed
        self._running[name] = cell, time.monotonic()

    def cell_progress(self, fraction: float) -> None:
        """The progress within a cell is not shown."""

    def cell_finished(self, record: Record, *, reused: bool) -> None:
        note_cell("")
        self._reused += reused
        self._running.pop((record.solver, record.operator, record.noise, record.data, record.seed), None)
        self._done[record.status] += 1
        if record.status == "failed":
            self.warn(f"{record.solver} on {record.operator}: {record.reason}")
        self._rank(record)

    def warn(self, message: str) -> None:
        self._warnings = [*self._warnings, message][-3:]

    def workers_done(self, seconds: Mapping[str, float]) -> None:
        self._quiet = False
        super().workers_done(seconds)

    def _rank(self, record: Record) -> None:
        """Keep the record if it is the best of its problem so far."""
        score = mean(record.values.get(self._by, ()))
        if score is None or record.ceiling:
            return
        problem = f"{record.operator}, noise {record.noise}, {record.data}, seed {record.seed}"
        if record.floor:
            self._floors[problem] = f"{score:.4g}"
        higher = any(column["name"] == self._by and column["direction"] == "higher" for column in record.columns)
        best = self._best.pop(problem, None)  # reinserted at the end, so that the most recent problem is last
        self._best[problem] = (score, record) if best is None or (score > best[0]) == higher else best

    def shown(self) -> RenderableType:
        """The dashboard at this moment."""
        finished = sum(self._done.values())
        new, elapsed = finished - self._reused, time.monotonic() - self._start
        left = self._cells - finished
        status = [f"{finished} of {self._cells} cells"]
        status += [f"{self._done[what]} {what}" for what in ("skipped", "failed") if self._done[what]]
        status += [f"{self._reused} reused"] if self._reused else []
        if new and left:
            status += [f"{60 * new / elapsed:.1f} a minute", f"about {duration(elapsed * left / new)} left"]
        running = [
            (_named(cell), duration(time.monotonic() - since)) for cell, since in list(self._running.values())[:ROWS]
        ]
        best = [
            (problem, record.solver, f"{score:.4g}", self._floors.get(problem, ""))
            for problem, (score, record) in list(self._best.items())[-ROWS:]
        ]
        progress = Table.grid(padding=(0, 1))
        progress.add_row(ProgressBar(self._cells, finished, width=40), rich_text(", ".join(status)))
        parts: list[RenderableType] = [
            progress,
            _table("running", ("cell", "since"), running),
            _table(f"best so far, by {self._by}", ("problem", "solver", self._by, "floor"), best),
            *(rich_text(warning, "red") for warning in self._warnings),
        ]
        return Group(*parts)


def _named(cell: Cell) -> str:
    return f"{cell.labels['solver']} on {cell.labels['operator']}, noise {cell.labels['noise']}"


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=rich_text(title), title_justify="left", title_style="bold", box=None, header_style="dim")
    for name in columns:
        table.add_column(rich_text(name))
    for row in rows:
        table.add_row(*map(rich_text, row))
    return table
