"""The checkpoint of a training run: the state needed to continue exactly, in one file that is replaced atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cryobench.errors import ResultsError, described
from cryobench.files import whole_file
from cryobench.training.settings import Settings

NAME = "checkpoint.pt"


@dataclass
class State:
    """The state after `step` updates. best, best_step: the lowest validation loss so far and its step. before: the card
    of the prior whose weights the run started with, None for random weights."""

    step: int
    settings: Settings
    network: dict[str, Any]
    averaged: dict[str, Any]
    optimizer: dict[str, Any]
    best: float
    best_step: int
    before: Mapping[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Replace the folder's checkpoint. Raises `ResultsError`, and keeps the old one, if it cannot be written."""
        values = vars(self) | {"settings": self.settings.to_dict()}
        path = folder / NAME
        try:
            with whole_file(path) as beside:
                torch.save(values, beside)
                with beside.open("rb+") as file:  # some file systems report a full disk only here
                    os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
            previous = "the previous one is intact" if path.exists() else "there is no previous one"
            raise ResultsError(
                f"the checkpoint of step {self.step} cannot be written to {path} ({described(error)}); {previous}. "
                "Free some space; the same command continues from there"
            ) from error

    @classmethod
    def load(cls, folder: Path) -> State | None:
        """The folder's checkpoint, or None. Raises `ResultsError` for one that cannot be read."""
        path = folder / NAME
        if not path.exists():
            return None
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
            return cls(**values | {"settings": Settings.from_dict(values["settings"])})
        except Exception as error:  # torch's reader raises many types
            raise ResultsError(f"{path} is not a checkpoint of this version ({described(error)}); "
                               "train into another folder, or remove it") from error  # fmt: skip
