"""The course of a training run: a CSV that a run which goes on continues, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from cryobench.files import whole_file

NAME = "loss.csv"
_COLUMNS = ("step", "loss", "validation_loss", "learning_rate")


class Log:
    """Rows (step, loss, validation_loss, learning_rate), a step each, one of the losses empty where it was not taken.

    What lies beyond `step`, where the run goes on, is dropped: it is computed again.
    """

    def __init__(self, folder: Path, step: int):
        self._path = folder / NAME
        kept = [row for row in _rows(self._path) if int(row["step"]) <= step]
        with whole_file(self._path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        self._file = self._path.open("a", buffering=1, newline="", encoding="utf-8")  # a line at once, for who watches
        self._writer = csv.DictWriter(self._file, _COLUMNS)
        self._board = _tensorboard(folder, step)

    def add(self, step: int, name: str, value: float, rate: float | None = None) -> None:
        """One number of one step."""
        self._writer.writerow({"step": step, name: f"{value:.6g}",
                               "learning_rate": "" if rate is None else f"{rate:.4g}"})  # fmt: skip
        if self._board is not None:
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """What was added is on disk."""
        self._file.flush()

    def close(self) -> None:
        """No more is added."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
