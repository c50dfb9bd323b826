"""Maps by the true structures of the particles, with their true poses: what a solver that knew them would find.

Of classes, each has the map of its particles. Of a continuous coordinate, maps are made at evenly spaced places of it
(of two coordinates, on a grid), each of the particles within one spacing; between places they are interpolated
linearly. All by Fourier inversion with Wiener weights from half maps (`maps.inversion`).

Where the true maps are known too, each shell of a map is taken from whichever correlates best with the true one: this
map, those of more particles around the place (`maps.kernel_regression`), or the consensus. This knowledge makes it a
ceiling: at the places, no shell is worse than that of the consensus.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch

from cryobench.core.heterogeneity import Heterogeneity, VolumeModel
from cryobench.core.operator import Imaging
from cryobench.errors import IncompatibleError
from cryobench.maps.half_maps import HalfMaps
from cryobench.maps.heterogeneity import labels_of
from cryobench.maps.inversion import particle_mask, wiener
from cryobench.maps.kernel_regression import Regression
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


def has_labels(imaging: Imaging) -> bool:
    """Whether the true classes or coordinates of the particles are known."""
    return any(labels is not None for labels in labels_of(imaging.table))


def true_label_maps(
    images: torch.Tensor,
    particles: Particles,
    imaging: Imaging,
    *,
    radius: float | None = None,
    true: Callable[[int], torch.Tensor | None] | None = None,
) -> Heterogeneity:
    """The maps of the true classes, or along the true coordinates where they are known.

    images: [N, D, D] in the units of the file. particles: their true poses and CTFs. imaging: of all, whose table has
    `trueClass`, or `trueLatent` and so on. radius: of the particle in Å, by which half maps are masked; None: the
    largest ball in the box. true: the true map of a particle [D, D, D], by its number; None: unknown. The latents are
    the true coordinates, or a 1 in the place of the class. Raises `IncompatibleError` where the table has neither, or
    too few particles of a class.
    """
    classes, truth = labels_of(imaging.table)
    mask = particle_mask(particles.side, radius, particles.pixel_size)
    if truth is not None:
        latents = torch.from_numpy(truth.copy())
        places, spacing = _places(len(latents), latents.shape[1])
        nearest = (latents[:, None] - places).abs().amax(dim=2).argmin(dim=1)
        kept = [number for number in range(len(places)) if int((nearest == number).sum()) >= _LEAST]
        if not kept:
            raise IncompatibleError(f"{len(latents)} particles are too few for maps along the true coordinate")
        places = places[kept]
    elif classes is not None:
        numbers = np.unique(classes)
        latents = torch.from_numpy((classes[:, None] == numbers).astype(np.float64))
        places, spacing = torch.eye(len(numbers), dtype=torch.float64), 0.0
        few = [number for number in numbers if np.count_nonzero(classes == number) < _LEAST]
        if few:
            raise IncompatibleError(f"class {few[0]} has fewer than {_LEAST} particles; use more images")
    else:
        raise IncompatibleError("the true structures of the particles are not known; use a source `heterogeneous`")
    groups = [((latents - place).abs() <= (spacing or 0.5)).all(dim=1).nonzero()[:, 0] for place in places]
    maps = torch.stack([_map(images, particles, group, mask) for group in groups])
    examples = torch.cdist(places, latents).argmin(dim=1).tolist()
    known = [None if true is None else true(example) for example in examples]
    truths = [volume for volume in known if volume is not None]
    if len(truths) == len(places):
        cells = (latents[:, None] - places).abs().amax(dim=2).argmin(dim=1)
        regression = Regression(images, particles, cells, _alternating(cells), torch.cdist(places, places), mask)
        consensus = _map(images, particles, torch.arange(len(images)), mask)
        maps = regression.maps(consensus, truths, maps)
    return Heterogeneity(latents, MapsAtPlaces(maps, places, spacing))


def _places(n: int, dimensions: int) -> tuple[torch.Tensor, float]:
    """The places [p, d] at which maps of n particles are made, and their spacing."""
    most = _PLACES.get(dimensions, 3)
    count = max(2, min(most, int((n / _WANTED) ** (1 / dimensions))))
    steps = [(i + 0.5) / count for i in range(count)]
    grid = list(itertools.product(*[steps] * dimensions))
    return torch.tensor(grid, dtype=torch.float64), 1 / count


def _alternating(cells: torch.Tensor) -> torch.Tensor:
    """The halves 0 and 1 in turn among the particles of each cell, int64 [N]."""
    half = torch.zeros_like(cells)
    for cell in cells.unique():
        own = (cells == cell).nonzero()[:, 0]
        half[own] = torch.arange(len(own)) % 2
    return half


def _map(images: torch.Tensor, particles: Particles, group: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The map of some particles by the exact normal equations, float32 [D, D, D], with halves in turn."""
    own = particles.select(group)
    sums = HalfMaps(own.side, own.pixel_size or 1.0)
    sums.add(images[group.to(images.device)].cpu(), own.poses, own.ctf, torch.arange(len(group)) % 2)
    return wiener(sums.sums, sums.kernels, mask=mask).full
