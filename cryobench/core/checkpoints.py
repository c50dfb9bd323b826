"""State of a long solver: it is saved now and then, and the same cell continues from it after a kill.

Outside of a cell, nothing is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from cryobench.files import whole_file

_INTERVAL = 20.0
"""Seconds between two saved states."""
_active: ContextVar[Checkpoint | None] = ContextVar("cryobench_checkpoint", default=None)


class Checkpoint:
    """The state of the solver of one cell, in a file."""

    def __init__(self, path: Path | None, interval: float = 0.0):
        self._path, self._interval, self._saved = path, interval, time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last; None without one, or where its file cannot be read."""
        if self._path is None or not self._path.exists():
            return None
        try:
            return torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception:  # torch raises many kinds of errors for files that are damaged; the solver then starts again
            return None

    def offer(self, state: Mapping[str, Any]) -> None:
        """Save a state, of tensors, numbers and text, if the last one is older than the interval.

        The state must be complete: what is solved from it must equal what is solved without the stop.
        """
        if self._path is None or time.monotonic() - self._saved < self._interval:
            return
        with whole_file(self._path) as file:
            torch.save(dict(state), file)
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the state, when the cell is finished."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@contextmanager
def checkpointing(path: Path | None, interval: float | None = None) -> Iterator[Checkpoint]:
    """Inside the block, `checkpoint()` is the state in this file; None: nothing is kept."""
    kept = Checkpoint(path, _INTERVAL if interval is None else interval)
    token = _active.set(kept)
    try:
        yield kept
    finally:
        _active.reset(token)


def checkpoint() -> Checkpoint:
    """The state of the solver that runs now."""
    return _active.get() or Checkpoint(None)
