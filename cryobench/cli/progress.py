"""How far a run has come, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cryobench.cli.output import note
from cryobench.grid import Cell
from cryobench.record import Record
from cryobench.runner import Observer
from cryobench.training import loop as training


class ProgressObserver(Observer):
    """Progress bars on a terminal, a plain line per cell elsewhere, nothing when quiet; warnings always."""

    def __init__(self, cells: int, quiet: bool):
        self.reused = 0
        self._bars, terminal = _bars(quiet)
        self._lines = not quiet and not terminal
        self._all = self._bars.add_task("cells", total=cells)
        self._one = self._bars.add_task("", total=1.0, visible=False)

    def __enter__(self) -> ProgressObserver:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def cell_started(self, cell: Cell) -> None:
        name = escape(f"{cell.labels['solver']} on {cell.labels['operator']}")
        self._bars.reset(self._one, description=name, visible=True)

    def cell_progress(self, fraction: float) -> None:
        self._bars.update(self._one, completed=fraction)

    def cell_finished(self, record: Record, *, reused: bool) -> None:
        self.reused += reused
        self._bars.advance(self._all)
        if self._lines:
            how = "was there already" if reused else record.status + (f": {record.reason}" if record.reason else "")
            note(f"{record.solver} on {record.operator}, noise {record.noise}, {record.data}: {how}")

    def warn(self, message: str) -> None:
        note(f"warning: {message}")


class TrainingObserver(training.Observer):
    """A bar with the losses on a terminal, a line per checkpoint and validation elsewhere, nothing when quiet; warnings
    always."""

    def __init__(self, quiet: bool):
        self._bars, terminal = _bars(quiet)
        self._bars.columns = (*self._bars.columns, TimeRemainingColumn())
        self._lines, self._quiet = not quiet and not terminal, quiet
        self._task = self._bars.add_task("training", total=None)
        self._told = ""
        self._steps = 0
        self._losses: list[float] = []

    def __enter__(self) -> TrainingObserver:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def started(self, step: int, steps: int) -> None:
        self._steps = steps
        self._bars.update(self._task, total=steps, completed=step)
        self.say(f"going on after step {step} of {steps}" if step else f"training for {steps} steps")

    def stepped(self, step: int, loss: float) -> None:
        self._losses.append(loss)
        self._bars.update(self._task, completed=step, description=f"loss {loss:.4f}{self._told}")

    def validated(self, step: int, loss: float, best: float) -> None:
        self._told = f", validation {loss:.4f}"
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

    def warn(self, message: str) -> None:
        note(f"warning: {message}")


@contextmanager
def counted(what: str, total: int, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar that counts things done; the block is given what to tell of it, (done, of how many)."""
    bars, _ = _bars(quiet)
    task = bars.add_task(what, total=total)
    with bars:
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _bars(quiet: bool) -> tuple[Progress, bool]:
    """Progress bars on stderr, nothing where it is no terminal or quiet is asked for; and whether it is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
    return bars, console.is_terminal
