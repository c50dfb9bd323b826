"""The log of a training run: a CSV that a continued run appends to, and TensorBoard if it is installed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from cryobench.errors import ResultsError, described
from cryobench.files import whole_file
from cryobench.results.tables import csv_line

NAME = "loss.csv"
_COLUMNS = ["step", "loss", "validation_loss", "learning_rate"]


class Log:
    """Rows (step, loss, validation_loss, learning_rate), with an empty field for the loss that was not computed.

    Rows beyond `step`, where the run continues, are dropped, since they are computed again. A row that cannot be
    written is reported by `flush`. Raises `ResultsError` if the file cannot be written.
    """

    def __init__(self, folder: Path, step: int):
        self._path = folder / NAME
        try:
            kept = [row for row in _rows(self._path) if int(row["step"]) <= step]
            with whole_file(self._path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
                file.writelines(csv_line(values) for values in (_COLUMNS, *(row.values() for row in kept)))
            # line-buffered, so that the file can be followed
            self._file = self._path.open("a", buffering=1, newline="", encoding="utf-8")
        except OSError as error:
            raise self._failed(error) from error
        self._failure: OSError | None = None
        self._board = _tensorboard(folder, step)

    def add(self, step: int, name: str, value: float, rate: float | None = None) -> None:
        """Add one number of a step."""
        row = {"step": step, name: f"{value:.6g}", "learning_rate": None if rate is None else f"{rate:.4g}"}
        if self._failure is None:
            try:
                self._file.write(csv_line(map(row.get, _COLUMNS)))
            except OSError as error:
                self._failure = error
        if self._board is not None:
            self._board.add_scalar(name, value, step)
            if rate is not None:
                self._board.add_scalar("learning_rate", rate, step)

    def flush(self) -> None:
        """Write all rows to the file. Raises `ResultsError` if one could not be written."""
        if self._board is not None:
            self._board.flush()
        try:
            self._file.flush()
        except OSError as error:
            self._failure = self._failure or error
        if self._failure is not None:
            raise self._failed(self._failure) from self._failure

    def close(self) -> None:
        """Close the files."""
        try:
            self._file.close()
        except OSError as error:  # only rows after the last checkpoint, which are computed again
            self._failure = error
        if self._board is not None:
            self._board.close()

    def _failed(self, error: OSError) -> ResultsError:
        return ResultsError(f"the log {self._path} cannot be written ({described(error)}); free some space; the same "
                            "command continues from the last checkpoint")  # fmt: skip


def _rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows: the last row of a killed run may be incomplete."""
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
