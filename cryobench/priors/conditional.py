"""`conditional`: a network that restores an image from other images of the same object, by diffusion or regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryobench.errors import DataError
from cryobench.priors.network_folder import NetworkFolder

NOISE, IMAGE = "noise", "image"
"""What a network predicts: `conditional` the noise, `regression` the image less its condition."""
PREDICTS, PATCH = "predicts", "patch"
"""The names of this, and of the side of the training patches, in the configuration of a network."""
SPREAD = 4.0
"""An image of mean 0 and deviation 1 is divided by it, so that diffusion is in [-1, 1]: values beyond four deviations
are clamped."""


@dataclass(frozen=True)
class Conditional(NetworkFolder):
    """A network in a folder, as `cryobench train --objective conditional` or `regression` writes it."""

    architecture, objective, kind = "film_unet", "conditional", "conditional network"

    @property
    def predicts(self) -> str:
        """`NOISE` or `IMAGE`. Raises `DataError` if that is not stated."""
        found = self.facts.get(PREDICTS)
        if found not in (NOISE, IMAGE):
            raise DataError(f"{self.source} states {PREDICTS} {found!r}, expected {NOISE} or {IMAGE}; copy it again")
        return found

    @property
    def patch(self) -> int:
        """Side of the training patches in pixels. Raises `DataError` if that is not stated."""
        found = self.facts.get(PATCH)
        if type(found) is not int or found < 1:
            raise DataError(f"{self.source} states {PATCH} {found!r}, expected a positive number; copy it again")
        return found

    def details(self) -> Mapping[str, Any]:
        return {"conditional": {"weights": self.weights_digest(), PREDICTS: self.predicts}}
