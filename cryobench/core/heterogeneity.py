"""Many structures in one stack: the answer of a solver that gives each particle a latent, and each latent a map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from cryobench.errors import DataError

TRUTH = "true"
"""Columns of the table of a source that begin with it state the truth of a particle. Solvers do not see them."""
TRUE_CLASS, TRUE_LATENT = "trueClass", "trueLatent"
"""The structure of a particle, from 1, and its place along a motion: `trueLatent`, or `trueLatent1` and so on."""


class VolumeModel(ABC):
    """Maps as a function of a latent: the image of a particle is C P v, the projection of v through the CTF, as that of
    `cryobench.operators.project`.

    side: D, voxels. dimensions: d, the numbers of a latent; 0 where there is one map for all.
    """

    side: int
    dimensions: int

    @abstractmethod
    def volumes(self, latents: torch.Tensor) -> torch.Tensor:
        """The maps of latents [m, d], float32 [m, D, D, D] on the CPU, in the units of the file."""

    @abstractmethod
    def arrays(self) -> dict[str, torch.Tensor]:
        """All that the model is made from, by name: what is saved, and given to `HeterogeneitySolver.volume_model`."""


def saved_arrays(arrays: Mapping[str, torch.Tensor], *names: str, wanted: str | None = None) -> list[torch.Tensor]:
    """The arrays of these names, of which a model is made. wanted: what they are in the message; default: their names.

    Raises `DataError` where one is missing.
    """
    if not set(names) <= set(arrays):
        expected = wanted or " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        raise DataError(f"the saved model has {', '.join(arrays) or 'nothing'}; expected {expected}")
    return [arrays[name] for name in names]


@dataclass(frozen=True, eq=False)
class Heterogeneity:
    """The structures of N particles.

    latents: float64 [N, d]. model: the map of any latent. rotations, shift: the poses that the solver found, as
    `cryobench.physics.poses` has them, the matrices A [N, 3, 3] and the place of the particle in the image (x, y) in Å
    (pixels, where the pixel size is unknown) [N, 2]; None where they were given. starts: the log-likelihood of each
    start of a search for poses, of which the best was kept.
    """

    latents: torch.Tensor
    model: VolumeModel
    rotations: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    starts: tuple[float, ...] = field(default=())
