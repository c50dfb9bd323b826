"""Live views: of a sweep, with the best results so far, and of `measure` and `reconstruct`, with their workers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cryobench.cli.output import rich_text
from cryobench.cli.progress import ChunkProgress, ProgressObserver, Speed, duration
from cryobench.cli.watch import note_cell
from cryobench.leaderboard.statistics.bootstrap import mean
from cryobench.measuring.chunks import ChunkObserver
from cryobench.plan.grid import Cell
from cryobench.record import Record, numbers_of

ROWS = 8
"""Maximum rows of each table."""
WARNINGS = 3
"""The number of warnings that are shown."""


def watching(cells: int, by: str, *, live: bool, quiet: bool) -> AbstractContextManager[ProgressObserver]:
    """The progress of a sweep: a dashboard if requested on a terminal; otherwise progress bars or lines."""
    return _watching(lambda: Dashboard(cells, by), lambda: ProgressObserver(cells, quiet), live=live and not quiet)


def watching_chunks(
    parts: Sequence[slice], what: str = "images", *, live: bool, quiet: bool
) -> AbstractContextManager[ChunkObserver]:
    """The progress of `measure` or `reconstruct`, likewise. parts: the images of each chunk. what: their name."""
    return _watching(lambda: ChunkDashboard(parts, what), lambda: ChunkProgress(parts[-1].stop, quiet, what),
                     live=live and not quiet)  # fmt: skip


@contextmanager
def _watching(dashboard: Callable[[], Any], bars: Callable[[], Any], *, live: bool) -> Iterator[Any]:
    console = Console(stderr=True)
    if live and console.is_terminal:
        shown = dashboard()
        with Live(get_renderable=shown.shown, console=console, refresh_per_second=2):
            yield shown
    else:
        with bars() as observer:
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
        self._warnings = _last(self._warnings, message)

    def workers_done(self, seconds: Mapping[str, float]) -> None:
        self._quiet = False
        super().workers_done(seconds)

    def _rank(self, record: Record) -> None:
        """Keep the record if it is the best of its problem so far."""
        score = mean(numbers_of(record, self._by) or ())
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
        return Group(
            _bar(finished, self._cells, status),
            _table("running", ("cell", "since"), running),
            _table(f"best so far, by {self._by}", ("problem", "solver", self._by, "floor"), best),
            *_red(self._warnings),
        )


class ChunkDashboard(ChunkObserver):
    """The dashboard of `measure --live` and `reconstruct --live`, with the last warnings. parts: of each chunk."""

    def __init__(self, parts: Sequence[slice], what: str = "images"):
        self._parts, self._images, self._what = parts, parts[-1].stop, what
        self._speed = Speed(self._images, what)
        self._running: dict[str, tuple[int, float]] = {}
        self._worker: dict[int, str] = {}
        self._finished: Counter[str] = Counter()
        self._warnings: list[str] = []

    def done(self, images: float) -> None:
        self._speed.update(images)

    def started(self, chunk: int, worker: str) -> None:
        self._running.pop(self._worker.get(chunk, ""), None)  # another worker, which died
        self._worker[chunk] = worker
        self._running[worker] = chunk, time.monotonic()

    def finished(self, chunk: int) -> None:
        worker = self._worker.pop(chunk)
        del self._running[worker]
        self._finished[worker] += self._parts[chunk].stop - self._parts[chunk].start

    def warn(self, message: str) -> None:
        self._warnings = _last(self._warnings, message)

    def shown(self) -> RenderableType:
        """The dashboard at this moment."""
        status = [f"{int(self._speed.done)} of {self._images} {self._what}", self._speed.text()]
        running = dict(self._running)
        workers = [
            (worker, *self._now(running.get(worker)), str(self._finished[worker]))
            for worker in sorted(running.keys() | self._finished.keys())
        ]
        hidden = [f"and {len(workers) - ROWS} more workers"] if len(workers) > ROWS else []
        return Group(
            _bar(int(self._speed.done), self._images, [text for text in status if text]),
            _table("workers", ("worker", self._what, "since", "done"), workers[:ROWS]),
            *map(rich_text, hidden),
            *_red(self._warnings),
        )

    def _now(self, running: tuple[int, float] | None) -> tuple[str, str]:
        """The images that a worker is at, and since when."""
        if running is None:
            return "idle", ""
        part = self._parts[running[0]]
        return f"{part.start} to {part.stop - 1}", duration(time.monotonic() - running[1])


def _bar(done: int, of: int, status: list[str]) -> Table:
    progress = Table.grid(padding=(0, 1))
    progress.add_row(ProgressBar(of, done, width=40), rich_text(", ".join(status)))
    return progress


def _last(warnings: list[str], message: str) -> list[str]:
    return [*warnings, message][-WARNINGS:]


def _red(warnings: list[str]) -> list[Text]:
    return [rich_text(warning, "red") for warning in warnings]


def _named(cell: Cell) -> str:
    return f"{cell.labels['solver']} on {cell.labels['operator']}, noise {cell.labels['noise']}"


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=rich_text(title), title_justify="left", title_style="bold", box=None, header_style="dim")
    for name in columns:
        table.add_column(rich_text(name))
    for row in rows:
        table.add_row(*map(rich_text, row))
    return table
