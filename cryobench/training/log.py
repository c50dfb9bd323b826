"""The course of a training run: a CSV that a run which goes on continues, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from cryobench.errors import ResultsError, told
from cryobench.files import whole_file

NAME = "loss.csv"
_COLUMNS = ["step", "loss", "validation_loss", "learning_rate"]


class Log:
    """Rows (step, loss, validation_loss, learning_rate), a step each, one of the losses empty where it was not taken.

    What lies beyond `step`, where the run goes on, is dropped: it is computed again. A row that cannot be written is
    told of by `flush`. Raises `ResultsError` where the file cannot be written at all.
    """

    def __init__(self, folder: Path, step: int):
        self._path = folder / NAME
        try:
            kept = [row for row in _rows(self._path) if int(row["step"]) <= step]
            with whole_file(self._path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, _COLUMNS)
                writer.writeheader()
                writer.writerows(kept)
            # a line at once, for who watches
            self._file = self._path.open("a", buffering=1, newline="", encoding="utf-8")
        except OSError as error:
            raise self._failed(error) from error
        self._writer = csv.DictWriter(self._file, _COLUMNS)
        self._failure: OSError | None = None
        self._board = _tensorboard(folder, step)

    def add(self, step: int, name: str, value: float, rate: float | None = None) -> None:
        """One number of one step."""
        row = {"step": step, name: f"{value:.6g}", "learning_rate": "" if rate is None else f"{rate:.4g}"}
        if self._failure is None:
            try:
                self._writer.writerow(row)
            except OSError as error:
                self._failure = error
        if self._board is not None:
            self._board.add_scalar(name, value, step)
            if rate is not None:
                self._board.add_scalar("learning_rate", rate, step)

    def flush(self) -> None:
        """What was added is in the file. Raises `ResultsError` where it is not."""
        if self._board is not None:
            self._board.flush()
        try:
            self._file.flush()
        except OSError as error:
            self._failure = self._failure or error
        if self._failure is not None:
            raise self._failed(self._failure) from self._failure

    def close(self) -> None:
        """No more is added."""
        try:
            self._file.close()
        except OSError as error:  # rows after the last checkpoint, which come again
            self._failure = error
        if self._board is not None:
            self._board.close()

    def _failed(self, error: OSError) -> ResultsError:
        return ResultsError(f"the log {self._path} cannot be written ({told(error)}); make room, and the same command "
                            "goes on from the last checkpoint")  # fmt: skip


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are whole: the last one of a run that was killed may not be."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != _COLUMNS:
            return []
        return [row for row in rows if None not in row.values() and None not in row and row["step"].isdigit()]


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
