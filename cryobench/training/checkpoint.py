"""What a training run needs to go on exactly where it was, in one file that is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cryobench.errors import ResultsError, told
from cryobench.files import whole_file
from cryobench.training.settings import Settings

NAME = "checkpoint.pt"


@dataclass
class State:
    """After `step` updates. best: the lowest validation loss so far and the step it was found at. before: the card of
    the prior it began with, None where it began with random weights."""

    step: int
    settings: Settings
    network: dict[str, Any]
    averaged: dict[str, Any]
    optimizer: dict[str, Any]
    best: float
    best_step: int
    before: Mapping[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Replace the folder's checkpoint. Raises `ResultsError`, and leaves the old one, where it cannot."""
        values = vars(self) | {"settings": self.settings.to_dict()}
        path = folder / NAME
        try:
            with whole_file(path) as beside:
                torch.save(values, beside)
                with beside.open("rb+") as file:  # some file systems tell only now that they are full
                    os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer tells of a full disk as RuntimeError
            before = "the one before it is whole" if path.exists() else "there was none before it"
            raise ResultsError(
                f"the checkpoint of step {self.step} cannot be written to {path} ({told(error)}); {before}. "
                "Make room, and the same command goes on from there"
            ) from error

    @classmethod
    def load(cls, folder: Path) -> State | None:
        """The folder's checkpoint, None where there is none. Raises `ResultsError` for one that cannot be read."""
        path = folder / NAME
        if not path.exists():
            return None
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
            return cls(**values | {"settings": Settings.from_dict(values["settings"])})
        except Exception as error:  # torch's reader raises many kinds
            raise ResultsError(f"{path} is no checkpoint of this version ({told(error)}); "
                               "train into another folder, or remove it") from error  # fmt: skip
