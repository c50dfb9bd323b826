"""Progress of a run, on stderr."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cryobench.cli.output import note
from cryobench.cli.watch import note_cell
from cryobench.measuring.chunks import ChunkObserver
from cryobench.plan.grid import Cell
from cryobench.record import Record
from cryobench.sweep.driver import SweepObserver
from cryobench.sweep.utilisation import summary
from cryobench.text import printable
from cryobench.training import loop as training

_COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=24),
    TaskProgressColumn(),
    TimeElapsedColumn(),
)


class _Display:
    """Progress bars on a terminal, shown within a `with` block; subclasses write lines elsewhere, nothing if quiet."""

    def __init__(self, quiet: bool, *columns: ProgressColumn):
        console = Console(stderr=True)
        self._quiet, self._lines = quiet, not quiet and not console.is_terminal
        self._bars = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def warn(self, message: str) -> None:
        """Print a warning, also if quiet."""
        note(f"warning: {message}")


class ProgressObserver(_Display, SweepObserver):
    """Shows progress bars on a terminal, with the time left of the cell that runs; one line per cell elsewhere, and now
    and then one of a long cell; nothing if quiet. Warnings are always shown.

    The time left assumes that a solver takes all its steps: for one that stops when it has converged, it is a bound.
    """

    INTERVAL = 30.0
    """Seconds between two lines of a cell."""

    def __init__(self, cells: int, quiet: bool):
        super().__init__(quiet, *_COLUMNS, TextColumn("{task.fields[left]}"))
        self._reused, self._cells = 0, cells
        self._all = self._bars.add_task("cells", total=cells, left="")
        self._one = self._bars.add_task("", total=1.0, visible=False, left="")
        self._name, self._speed, self._printed = "", Speed(1), 0.0

    def cell_started(self, cell: Cell) -> None:
        self._name = printable(f"{cell.labels['solver']} on {cell.labels['operator']}")
        note_cell(self._name)
        self._speed, self._printed = Speed(1), time.monotonic()
        self._bars.reset(self._one, description=self._name, visible=True, left="")

    def cell_progress(self, fraction: float) -> None:
        self._speed.update(fraction)
        seconds = self._speed.seconds_left()
        left = "" if seconds is None else f"{duration(seconds)} left"
        self._bars.update(self._one, completed=fraction, left=left)
        if self._lines and time.monotonic() - self._printed >= self.INTERVAL:
            self._printed = time.monotonic()
            note(f"{self._name}: {100 * fraction:.0f}%" + (f", {left}" if left else ""))

    def cell_finished(self, record: Record, *, reused: bool) -> None:
        note_cell("")
        self._reused += reused
        self._bars.advance(self._all)
        if self._lines:
            how = "reused" if reused else record.status + (f": {record.reason}" if record.reason else "")
            note(f"{record.solver} on {record.operator}, noise {record.noise}, {record.data}: {how}")

    def workers_done(self, seconds: Mapping[str, float]) -> None:
        if not self._quiet:
            note(f"worker time: {summary(seconds)}")

    def summary(self, folder: Path) -> str:
        """A message with the number of cells in a results folder and how many were reused."""
        reused = f", {self._reused} of them reused (--force runs them again)" if self._reused else ""
        return f"{self._cells} cells in {folder}{reused}"


class TrainingProgress(_Display, training.TrainingObserver):
    """Shows a bar with the losses on a terminal, one line per checkpoint and validation elsewhere, nothing if quiet.
    Warnings are always shown."""

    def __init__(self, quiet: bool):
        super().__init__(quiet, *_COLUMNS, TimeRemainingColumn())
        self._task = self._bars.add_task("training", total=None)
        self._validation = ""
        self._steps = 0
        self._losses: list[float] = []

    def started(self, step: int, steps: int) -> None:
        self._steps = steps
        self._bars.update(self._task, total=steps, completed=step)
        self.say(f"continuing after step {step} of {steps}" if step else f"training for {steps} steps")

    def stepped(self, step: int, loss: float) -> None:
        self._losses.append(loss)
        self._bars.update(self._task, completed=step, description=f"loss {loss:.4f}{self._validation}")

    def validated(self, step: int, loss: float, best: float) -> None:
        self._validation = f", validation {loss:.4f}"
        if self._lines:
            note(f"step {step}: validation loss {loss:.6f}, lowest {best:.6f}")

    def saved(self, step: int) -> None:
        if self._lines:
            mean = sum(self._losses) / max(len(self._losses), 1)
            note(f"step {step} of {self._steps}: saved; mean loss of the last {len(self._losses)} steps {mean:.6f}")
        self._losses.clear()

    def say(self, message: str) -> None:
        if not self._quiet:
            note(message)


class ChunkProgress(_Display, ChunkObserver):
    """Shows a bar with the images that are done, their speed and the time left on a terminal, a line now and then
    elsewhere, nothing if quiet. Warnings are always shown."""

    INTERVAL = 30.0
    """Seconds between two lines."""

    def __init__(self, images: int, quiet: bool, what: str = "images"):
        super().__init__(quiet, *_COLUMNS[:2], MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
                         TimeElapsedColumn())  # fmt: skip
        self._images, self._what, self._speed = images, what, Speed(images, what)
        self._task = self._bars.add_task(what, total=images, speed="")
        self._printed = time.monotonic()

    def done(self, images: float) -> None:
        self._speed.update(images)
        speed = self._speed.text()
        self._bars.update(self._task, completed=int(images), speed=speed)
        if self._lines and time.monotonic() - self._printed >= self.INTERVAL:
            self._printed = time.monotonic()
            note(f"{int(images)} of {self._images} {self._what}" + (f", {speed}" if speed else ""))


class Speed:
    """The speed of a task since the first update, and the time that is left. what: its images, in messages."""

    def __init__(self, images: int, what: str = "images"):
        self._images, self._what = images, what
        self._start: tuple[float, float] | None = None
        self.done = 0.0

    def update(self, done: float) -> None:
        """So many images are done."""
        self.done = done
        if self._start is None:
            self._start = time.monotonic(), done

    def text(self) -> str:
        """Images per second and the time left; empty before an image is done."""
        rate = self._rate()
        return "" if rate is None else f"{rate:.3g} {self._what}/s, {duration((self._images - self.done) / rate)} left"

    def seconds_left(self) -> float | None:
        """The time left in seconds; None before there is a second update."""
        rate = self._rate()
        return None if rate is None else (self._images - self.done) / rate

    def _rate(self) -> float | None:
        start, before = self._start or (math.inf, 0.0)
        seconds = time.monotonic() - start
        return None if self.done <= before or seconds <= 0 else (self.done - before) / seconds


@contextmanager
def counted(what: str, total: int, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar that counts finished items; yields a function update(done, total)."""
    with _Display(quiet, *_COLUMNS, TimeRemainingColumn()) as display:
        task = display._bars.add_task(printable(what), total=total)
        yield lambda done, total: display._bars.update(task, completed=done, total=total)


def duration(seconds: float) -> str:
    """A duration in a suitable unit: 40 s, 12 min, 3.5 h, 2.1 days."""
    for unit, size, below in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < size * below:
            return f"{seconds / size:.{0 if unit == 's' or seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"
