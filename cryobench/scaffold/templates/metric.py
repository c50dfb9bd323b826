"""Normalised cross-correlation, as a cryobench metric."""

from dataclasses import dataclass
from typing import ClassVar

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.numerics.linalg import item_axes


@dataclass(frozen=True)
class Example(Metric):
    """<x - mean x, t - mean t> / (||x - mean x|| ||t - mean t||) of an image x and the truth t: 1 is best."""

    dims = (2, 3)
    columns: ClassVar[tuple[Column, ...]] = (Column("example", "higher"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        x, t = (images - images.mean(dim=item_axes(images), keepdim=True) for images in (reconstruction.x, case.truth))
        norms = x.flatten(1).norm(dim=1) * t.flatten(1).norm(dim=1)
        return Measured({"example": (x * t).sum(dim=item_axes(x)) / norms.clamp_min(1e-30)})
