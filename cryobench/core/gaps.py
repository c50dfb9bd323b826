"""Volumes gap by gap: what lies between two measured sections, from these two alone."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from cryobench.core.components import Progress, Solver
from cryobench.numerics.linalg import tiny
from cryobench.rng import Rng


@dataclass(frozen=True)
class Intensities:
    """Mean, standard deviation, minimum and maximum of the measured sections of a volume: one scale for all gaps."""

    mean: float
    deviation: float
    low: float
    high: float

    @staticmethod
    def of(sections: Iterable[torch.Tensor]) -> Intensities:
        """Those of sections [H, W] of one size, which are read one by one, in float64 (Chan, Golub & LeVeque 1983)."""
        count, mean, square, low, high = 0, 0.0, 0.0, math.inf, -math.inf
        for count, section in enumerate(sections, start=1):
            values = section.double()
            own = float(values.mean())
            step = own - mean
            mean += step / count
            square += float((values - own).square().mean()) + step**2 * (count - 1) / count
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        return Intensities(mean, math.sqrt(square / max(count, 1)), low, high)


@dataclass(frozen=True)
class Gap:
    """Two neighbouring measured sections and the places between them.

    pair: the sections, [2, H, W], in the units of the data. times: the places of the missing sections from the first to
    the second, increasing, each in (0, 1); k / R of every R-th section for k = 1, ..., R - 1. number: of the gap in its
    volume, from 0. volume: the intensities of all measured sections, in the same units.
    """

    pair: torch.Tensor
    times: Sequence[float]
    number: int
    volume: Intensities

    @property
    def standardised(self) -> torch.Tensor:
        """The pair on the scale on which the measured sections of the volume have mean 0 and deviation 1."""
        return (self.pair - self.volume.mean) / max(self.volume.deviation, tiny(self.pair))

    def restored(self, sections: torch.Tensor) -> torch.Tensor:
        """Sections on that scale in the units of the data."""
        return sections * self.volume.deviation + self.volume.mean


@dataclass(frozen=True)
class Filled:
    """The missing sections of a gap and their standard deviation, if it is estimated, [n, H, W] in the units, the dtype
    and on the device of the pair. samples: see `Reconstruction`."""

    sections: torch.Tensor
    deviation: torch.Tensor | None = None
    samples: int | None = None


class GapSolver(Solver):
    """A solver that fills each gap of a volume from the two sections around it, so that a volume needs no more memory
    than a gap (`cryobench isotropic`)."""

    @abstractmethod
    def fill(self, gap: Gap, *, rng: Rng, progress: Progress | None = None) -> Filled:
        """Fill a gap. rng: of the volume, with one image id: the draws of a purpose are the same in all gaps, and own
        ones of a gap have its number in their purpose."""

    def unfillable(self, times: Sequence[float]) -> str | None:
        """The reason why gaps with missing sections at these times cannot be filled, or None."""
        return None
