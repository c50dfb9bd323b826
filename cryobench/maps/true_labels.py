"""Maps by the true structures of the particles, with their true poses: what a solver that knew them would find.

Of classes, each has the map of its particles. Of a continuous coordinate, maps are made at evenly spaced places of it
(of two coordinates, on a grid), each of the particles within one spacing: kernel regression with a box as kernel. The
map of a coordinate between places is interpolated linearly. All by Fourier inversion with Wiener weights from half maps
(`maps.inversion`), like the map of one structure.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch

from cryobench.core.heterogeneity import Heterogeneity, VolumeModel
from cryobench.core.operator import Imaging
from cryobench.errors import IncompatibleError
from cryobench.maps.half_maps import HalfMaps
from cryobench.maps.heterogeneity import labels_of
from cryobench.maps.inversion import EDGE, default_mask, wiener
from cryobench.maps.masks import soft_ball
from cryobench.maps.particles import Particles

_PLACES = {1: 12, 2: 5}
"""Places of a coordinate, at most, by the number of coordinates."""
_WANTED = 60
"""Particles of a place; there are fewer places where there are fewer particles."""
_LEAST = 4
"""Fewest particles that make a map."""


class MapsAtPlaces(VolumeModel):
    """Maps [p, D, D, D] at places [p, d] of latents.

    spacing: 0 for classes, where a latent has the map of the nearest place; else the map of a latent is the mean of
    those of places within one spacing along every coordinate, weighted linearly, or of the nearest without such.
    """

    def __init__(self, maps: torch.Tensor, places: torch.Tensor, spacing: float):
        self.maps, self.places, self.spacing = maps, places, spacing
        self.side, self.dimensions = maps.shape[-1], places.shape[1]

    def volumes(self, latents: torch.Tensor) -> torch.Tensor:
        off = (latents.double().cpu()[:, None] - self.places).abs()  # [m, p, d]
        nearest = torch.nn.functional.one_hot(off.square().sum(-1).argmin(1), len(self.places)).double()
        weights = nearest
        if self.spacing > 0:
            weights = (1 - off / self.spacing).clamp_min(0).prod(dim=-1)
            weights = torch.where(weights.sum(1, keepdim=True) > 1e-9, weights, nearest)
        weights = weights / weights.sum(1, keepdim=True)
        return torch.einsum("mp,pzyx->mzyx", weights.float(), self.maps.float())

    def arrays(self) -> dict[str, torch.Tensor]:
        return {"maps": self.maps, "places": self.places, "spacing": torch.tensor(self.spacing)}

    @staticmethod
    def of_arrays(arrays: Mapping[str, torch.Tensor]) -> MapsAtPlaces:
        """The model whose `arrays` were saved."""
        return MapsAtPlaces(arrays["maps"], arrays["places"], float(arrays["spacing"]))


def has_labels(imaging: Imaging) -> bool:
    """Whether the true classes or coordinates of the particles are known."""
    return any(labels is not None for labels in labels_of(imaging.table))


def true_label_maps(
    images: torch.Tensor, particles: Particles, imaging: Imaging, *, radius: float | None = None
) -> Heterogeneity:
    """The maps of the true classes, or along the true coordinates where they are known.

    images: [N, D, D] in the units of the file. particles: their true poses and CTFs. imaging: of all, whose table has
    `trueClass`, or `trueLatent` and so on. radius: of the particle in Å, by which half maps are masked; None: the
    largest ball in the box. The latents are the true coordinates, or a 1 in the place of the class. Raises
    `IncompatibleError` where the table has neither, or too few particles of a class.
    """
    classes, truth = labels_of(imaging.table)
    side, size = particles.side, particles.pixel_size
    mask = default_mask(side)
    if radius is not None and size is not None:
        mask = soft_ball(side, min(radius / size, side / 2 - EDGE), EDGE, dtype=torch.float64)
    if truth is not None:
        latents = torch.from_numpy(truth.copy())
        places, spacing = _places(len(latents), latents.shape[1])
        groups = [((latents - place).abs() <= spacing).all(dim=1).nonzero()[:, 0] for place in places]
        kept = [number for number, group in enumerate(groups) if len(group) >= _LEAST]
        if not kept:
            raise IncompatibleError(f"{len(latents)} particles are too few for maps along the true coordinate")
        places, groups = places[kept], [groups[number] for number in kept]
    elif classes is not None:
        numbers = np.unique(classes)
        latents = torch.from_numpy((classes[:, None] == numbers).astype(np.float64))
        places, spacing = torch.eye(len(numbers), dtype=torch.float64), 0.0
        groups = [torch.from_numpy(np.flatnonzero(classes == number)) for number in numbers]
        few = [number for number, group in zip(numbers, groups, strict=True) if len(group) < _LEAST]
        if few:
            raise IncompatibleError(f"class {few[0]} has fewer than {_LEAST} particles; use more images")
    else:
        raise IncompatibleError("the true structures of the particles are not known; use a source `heterogeneous`")
    maps = torch.stack([_map(images, particles, group, mask) for group in groups])
    return Heterogeneity(latents, MapsAtPlaces(maps, places, spacing))


def _places(n: int, dimensions: int) -> tuple[torch.Tensor, float]:
    """The places [p, d] at which maps of n particles are made, and their spacing."""
    most = _PLACES.get(dimensions, 3)
    count = max(2, min(most, int((n / _WANTED) ** (1 / dimensions))))
    steps = [(i + 0.5) / count for i in range(count)]
    grid = list(itertools.product(*[steps] * dimensions))
    return torch.tensor(grid, dtype=torch.float64), 1 / count


def _map(images: torch.Tensor, particles: Particles, group: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The map of some particles, float32 [D, D, D]; its halves are those of even and odd places among them."""
    own = particles.select(group)
    sums = HalfMaps(own.side, own.pixel_size or 1.0)
    sums.add(images[group.to(images.device)].cpu(), own.poses, own.ctf, torch.arange(len(group)) % 2)
    return wiener(sums.sums, sums.kernels, mask=mask).full
