"""Maps at places of a latent from the images around them, by kernel regression (Gilles and Singer 2025, PNAS
122:e2419140122).

The particles are divided into cells, one for each of p places. With the sums b_c of A^T y and the densities C_c of
A^T A (`maps.inversion`) of the particles of cell c, the map at place z with n neighbours is the regularised
least-squares map of weighted images,

    F X_zn = sum_c w_zn(c) F b_c / (sum_c w_zn(c) C_c + L_n),      w_zn(c) = max(0, 1 - |z - c|^2 / h_zn^2),

Epanechnikov's kernel, whose bandwidth h_zn is the distance of the place n + 1 of the order; n = p is all particles with
weight 1. L_n follows from the correlation of half maps. The bandwidth differs between shells: wide kernels have less
noise. Here it is chosen by the true maps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from cryobench.maps.band import Band
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.inversion import default_mask, prior_weights, regularised
from cryobench.maps.particle_images import ParticleImages
from cryobench.maps.particles import Particles
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.shells import shells


class Regression:
    """The sums of every cell and half, and the maps that follow.

    images: [N, D, D] in the units of the file. cells, halves: of each particle, int64 [N]. distances: between places,
    [p, p]. mask: within which half maps are compared; None: `default_mask`.
    """

    def __init__(
        self,
        images: torch.Tensor,
        particles: Particles,
        cells: torch.Tensor,
        halves: torch.Tensor,
        distances: torch.Tensor,
        mask: torch.Tensor | None = None,
    ):
        D, self.count = particles.side, len(distances)
        self.side, self._mask = D, default_mask(D) if mask is None else mask
        self.sums = torch.zeros((self.count, 2, D, D, D))
        self.densities = torch.zeros((self.count, 2, D, D, D // 2 + 1))
        band = Band.of(ParticleImages(images.cpu().float(), particles), D)
        for cell in range(self.count):
            for half in (0, 1):
                own = ((cells == cell) & (halves == half)).nonzero()[:, 0]
                if len(own):
                    some = band.select(own)
                    self.sums[cell, half] = some.back((some.values * some.transfer)[None])[0].float()
                    self.densities[cell, half] = scattered_density(some)
        self.weights = _weights(distances)

    def maps(self, consensus: torch.Tensor, true: Sequence[torch.Tensor], exact: torch.Tensor) -> torch.Tensor:
        """The map of each cell, float32 [p, D, D, D], each shell from the candidate that correlates best with the true
        map: the consensus [D, D, D], with or without the difference that a bandwidth makes, or `exact`.

        true: of each cell, [D, D, D]. exact: maps of the particles of each place, made otherwise, [p, D, D, D].
        """
        base = consensus.float().cpu()
        made = [self._full(number) for number in range(len(self.weights))]
        candidates = [exact, *(base + maps - made[-1] for maps in made)]
        chosen = _best(candidates, true)
        shell, result = shells((self.side,) * 3).clamp_max(self.side // 2), []
        for cell, own in enumerate(chosen):
            index, spectrum = own[shell], torch.zeros((*shell.shape,), dtype=torch.complex128)
            for number in own.unique().tolist():
                spectrum += torch.where(index == number, rfftn(candidates[number][cell].double(), 3), 0)
            result.append(irfftn(spectrum, (self.side,) * 3).float())
        return torch.stack(result)

    def _weighted(self, number: int, cell: int) -> tuple[torch.Tensor, torch.Tensor]:
        w = self.weights[number][cell]
        used = w.nonzero()[:, 0]
        b = torch.tensordot(w[used].float(), self.sums[used], 1).double()
        return b, torch.tensordot(w[used].float(), self.densities[used], 1).double()

    def _correlation(self, number: int) -> torch.Tensor:
        """The correlation of half maps of a candidate, the mean over the cells, [D // 2]."""
        curves = []
        for cell in range(self.count if number < len(self.weights) - 1 else 1):
            b, C = self._weighted(number, cell)
            first, second = (regularised(b[h], C[h], _least_prior(C[h])) for h in (0, 1))
            curves.append(shell_correlation(first, second, self._mask))
        return torch.stack(curves).mean(0)

    def _full(self, number: int) -> torch.Tensor:
        """The maps of all particles of a candidate, float32 [p, D, D, D]."""
        fsc = self._correlation(number)
        fsc = (2 * fsc / (1 + fsc.clamp_min(-0.9))).clamp(max=1)
        found = []
        for cell in range(self.count if number < len(self.weights) - 1 else 1):
            b, C = self._weighted(number, cell)
            b, C = b.sum(0), C.sum(0)
            found.append(regularised(b, C, prior_weights(C, fsc)).float())
        return torch.stack(found).expand(self.count, -1, -1, -1)


def _least_prior(C: torch.Tensor) -> torch.Tensor:
    """A small part of the largest C, which keeps frequencies without data finite."""
    return 1e-3 * C.max() + 0 * C


def scattered_density(band: Band) -> torch.Tensor:
    """C of the images of a band, float32 [b, b, b // 2 + 1]: b^3 T^2 at the points of the slices, distributed linearly
    over the 8 nearest frequencies. Fejer's kernel of `maps.inversion.density` has a similar shape, and costs an FFT of
    the doubled box for each cell."""
    b = band.side
    found = torch.zeros(b**3)
    for rows in torch.arange(len(band)).split(256):
        some = band.select(rows)
        points = (some.k @ some.rotations[:, :2]).flatten(0, 1).float()
        values = (some.transfer.square() * some.weights).flatten()
        low = points.floor()
        part, low = points - low, low.long()
        for corner in itertools.product((0, 1), repeat=3):
            c = torch.tensor(corner)
            weight = torch.where(c == 1, part, 1 - part).prod(dim=1)
            x, y, z = ((low + c) % b).unbind(1)
            found.index_add_(0, (z * b + y) * b + x, values * weight)
    grid = found.reshape(b, b, b)
    mirrored = grid.flip(0, 1, 2).roll((1, 1, 1), (0, 1, 2))
    return (b**3 / 2 * (grid + mirrored))[..., : b // 2 + 1].contiguous()


def _best(candidates: Sequence[torch.Tensor], true: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """For each cell, the candidate [p, D, D, D] that correlates best with its true map in each shell, int64
    [D // 2 + 1]; shell 0 is taken from that of shell 1."""
    found = []
    for cell, own in enumerate(true):
        own = own.double().cpu()
        best = torch.stack([shell_correlation(maps[cell].double(), own) for maps in candidates]).argmax(dim=0)
        found.append(torch.cat([best[:1], best]))
    return found


def _weights(distances: torch.Tensor) -> list[torch.Tensor]:
    """The weights [p, p] of the cells in the map at each place, for 1, 2, 4, ... neighbours and for all."""
    p, found, n = len(distances), [], 1
    order = distances.sort(dim=1).values
    while n < p:
        width = order[:, n : n + 1].clamp_min(1e-30)
        found.append((1 - (distances / width).square()).clamp_min(0))
        n *= 2
    return [*found, torch.ones_like(distances)]
