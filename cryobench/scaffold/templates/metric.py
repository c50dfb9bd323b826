"""Normalised cross-correlation, as a cryobench metric."""

from dataclasses import dataclass
from typing import ClassVar

from cryobench.core import Case, Column, Measured, Metric, Reconstruction


@dataclass(frozen=True)
class Example(Metric):
    """<x - mean x, t - mean t> / (||x - mean x|| ||t - mean t||) of an image x and the truth t: 1 is best."""

    columns: ClassVar[tuple[Column, ...]] = (Column("example", "higher"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        x, t = (images - images.mean(dim=(1, 2, 3), keepdim=True) for images in (reconstruction.x, case.truth))
        norms = x.flatten(1).norm(dim=1) * t.flatten(1).norm(dim=1)
        return Measured({"example": (x * t).sum(dim=(1, 2, 3)) / norms.clamp_min(1e-30)})
