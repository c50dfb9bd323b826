"""`conditional`: a network that restores an image from other images of the same object, by diffusion or regression."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cryobench.errors import DataError
from cryobench.networks.files import CONFIG
from cryobench.priors.network_folder import NetworkFolder

NOISE, VELOCITY, IMAGE = "noise", "velocity", "image"
"""What a network predicts: `conditional` the noise or the velocity, `regression` the image less its condition."""
PREDICTS, PATCH = "predicts", "patch"
"""The names of this, and of the side of the training patches, in the configuration of a network."""
MEAN = "mean"
"""The folder of the regression whose residual is sampled, in that of the network."""
SPREAD = 4.0
"""An image of mean 0 and deviation 1 is divided by it, so that diffusion is in [-1, 1]: values beyond four deviations
are clamped."""


@dataclass(frozen=True)
class Conditional(NetworkFolder):
    """A network in a folder, as `cryobench train --objective conditional` or `regression` writes it."""

    architecture, objective, kind = "film_unet", "conditional", "conditional network"

    @property
    def dims(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Volumes for a network that fills gaps between their sections, else images. Raises `DataError`."""
        return (2,) if self.config.gap is None else (3,)

    @property
    def predicts(self) -> str:
        """`NOISE`, `VELOCITY` or `IMAGE`. Raises `DataError` if that is not stated."""
        found = self.facts.get(PREDICTS)
        if found not in (NOISE, VELOCITY, IMAGE):
            raise DataError(f"{self.source} states {PREDICTS} {found!r}, expected {NOISE}, {VELOCITY} or {IMAGE}; copy "
                            "it again")  # fmt: skip
        return found

    @property
    def patch(self) -> int:
        """Side of the training patches in pixels. Raises `DataError` if that is not stated."""
        found = self.facts.get(PATCH)
        if type(found) is not int or found < 1:
            raise DataError(f"{self.source} states {PATCH} {found!r}, expected a positive number; copy it again")
        return found

    @property
    def mean(self) -> Conditional | None:
        """The regression to which samples are added, None for samples of the image. Raises `DataError` if it is
        missing."""
        if not self.config.residual:
            return None
        folder = self.folder / MEAN
        if not (folder / CONFIG).exists():
            raise DataError(
                f"{self.source} samples what a regression leaves, but its folder {MEAN} has none; copy it again"
            )
        return Conditional(str(folder))

    def prepare(self, device: torch.device) -> None:
        super().prepare(device)
        if self.mean is not None:
            self.mean.prepare(device)

    def weights_digest(self) -> str:
        own, mean = super().weights_digest(), self.mean
        if mean is None:
            return own
        return hashlib.sha256(f"{own} {mean.weights_digest()}".encode()).hexdigest()

    def trained_on(self) -> Sequence[Mapping[str, str]]:
        mean = self.mean
        return [*super().trained_on(), *(() if mean is None else mean.trained_on())]

    def details(self) -> Mapping[str, Any]:
        return {"conditional": {"weights": self.weights_digest(), PREDICTS: self.predicts}}
