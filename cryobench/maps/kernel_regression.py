"""Maps as a function of the latents of particles, by kernel regression (Gilles and Singer 2025, PNAS 122:e2419140122).

The latents are divided into p cells (`cells_of`), each with a place, the mean of its particles. With the sums b_c of
A^T y and the densities C_c of A^T A (`maps.inversion`) of the particles of cell c, the map at place z with n neighbours
is the regularised least-squares map of weighted images,

    F X_zn = sum_c w_zn(c) F b_c / (sum_c w_zn(c) C_c + L_n),      w_zn(c) = max(0, 1 - |z - c|^2 / h_zn^2),

Epanechnikov's kernel, whose bandwidth h_zn is the distance of the place n + 1 of the order; n = p is all particles with
weight 1. Distances are in units of the noise of the latents. L_n follows from the correlation of half maps.

The bandwidth may differ between shells: few shells differ between particles, and wide kernels have less noise. By
cross-validation, it is the one whose half maps predict best what the other half says of the same cell,

    R_n = sum_z sum_(a = 1, 2) sum_k C_z^(3-a) |F X_zn^a|^2 - 2 Re conj(F X_zn^a) F b_z^(3-a),

which is the squared error of the images of the other half in the shell, less a constant; it must be below that of all
particles by its standard error. With the truth at hand
(`choose_by_truth`) it is the one whose map correlates best with it. In shells of n = p the map is the consensus.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cryobench.core import VolumeModel
from cryobench.errors import DataError
from cryobench.maps.band import Band
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.inversion import default_mask, prior_weights, regularised
from cryobench.maps.particle_images import ParticleImages
from cryobench.maps.particles import Particles
from cryobench.metrics.rings import ring_sums
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.shells import shells

MOST_CELLS = 24
_WANTED = 60
"""Particles of a cell; there are fewer cells where there are fewer particles."""
_LEAST_SQUARE = 1e-12


@dataclass(frozen=True, eq=False)
class Cells:
    """The cell of each of N particles, int64 [N]; the places of the p cells, float64 [p, d]; and the metric [d, d]: the
    squared distance of u is u^T metric u."""

    of: torch.Tensor
    places: torch.Tensor
    metric: torch.Tensor

    def distances(self, latents: torch.Tensor) -> torch.Tensor:
        """Of latents [m, d] from the places, [m, p]."""
        return distances(latents, self.places, self.metric)


def distances(latents: torch.Tensor, places: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """Of latents [m, d] from places [p, d] in the metric [d, d], float64 [m, p]."""
    off = latents.double().cpu()[:, None] - places
    return torch.einsum("mpk,kl,mpl->mp", off, metric, off).clamp_min(0).sqrt()


def cells_of(latents: torch.Tensor, noise: torch.Tensor, *, most: int = MOST_CELLS) -> Cells:
    """At most `most` cells of latents [N, d] by k-means. noise: the covariance of the noise of a latent, [d, d]."""
    from sklearn.cluster import KMeans

    metric = torch.linalg.inv(noise.double())
    root = torch.linalg.cholesky((metric + metric.T) / 2)
    scaled = (latents.double() @ root).numpy()
    count = min(max(2, min(most, len(latents) // _WANTED)), len(np.unique(scaled, axis=0)))
    labels = KMeans(count, n_init=4, random_state=0).fit_predict(scaled)  # pyright: ignore[reportArgumentType]
    of = torch.from_numpy(labels).long()
    places = torch.stack([latents[of == cell].double().mean(dim=0) for cell in range(count)])
    return Cells(of, places, metric)


@dataclass(frozen=True, eq=False)
class PlaceVolumes(VolumeModel):
    """Maps [p, D, D, D] at places [p, d]. The map of a latent is the mean of those of the nearest d + 1 places, each
    weighted by its squared inverse distance in the metric [d, d]."""

    maps: torch.Tensor
    places: torch.Tensor
    metric: torch.Tensor

    def __post_init__(self) -> None:
        if self.maps.ndim != 4 or self.places.ndim != 2 or len(self.maps) != len(self.places):
            raise DataError(f"the maps have shape {list(self.maps.shape)} and the places {list(self.places.shape)}; "
                            "give [p, D, D, D] and [p, d]")  # fmt: skip

    @staticmethod
    def of(arrays: Mapping[str, torch.Tensor]) -> PlaceVolumes:
        """The model of saved arrays. Raises `DataError` where they lack one."""
        if not {"maps", "places", "metric"} <= set(arrays):
            raise DataError(f"the saved model has {', '.join(arrays) or 'nothing'}; expected maps, places and metric")
        return PlaceVolumes(arrays["maps"], arrays["places"].double(), arrays["metric"].double())

    @property
    def side(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.maps.shape[-1]

    @property
    def dimensions(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.places.shape[1]

    def weights(self, latents: torch.Tensor) -> torch.Tensor:
        """Of the places in the maps of latents [m, d], float32 [m, p]."""
        far = distances(latents, self.places, self.metric)
        near, index = far.topk(min(len(self.places), self.dimensions + 1), dim=1, largest=False)
        weights = 1 / near.square().clamp_min(_LEAST_SQUARE)
        weights = weights / weights.sum(dim=1, keepdim=True)
        return torch.zeros_like(far).scatter_(1, index, weights).float()

    def volumes(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.tensordot(self.weights(latents), self.maps.cpu().float(), 1)

    def arrays(self) -> dict[str, torch.Tensor]:
        return {"maps": self.maps.float().cpu(), "places": self.places, "metric": self.metric}


Choice = Callable[["Regression", list[torch.Tensor]], torch.Tensor]
"""From the maps [c, D, D, D] of each candidate, the candidate of every cell and shell, int64 [c, D // 2 + 1]."""


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
        self._correlations: dict[int, torch.Tensor] = {}
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

    def maps(self, consensus: torch.Tensor, choose: Choice, others: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """The map of each cell, float32 [p, D, D, D]: the consensus [D, D, D] in shells where all particles are best,
        elsewhere with the difference that the bandwidth of the shell makes.

        others: further maps [p, D, D, D] of all cells, made otherwise, for a choice that compares maps.
        """
        base = consensus.float().cpu()
        made = [self._full(number) for number in range(len(self.weights))]
        candidates = [*others, *(base + maps - made[-1] for maps in made)]
        chosen = choose(self, candidates)
        shell, result = shells((self.side,) * 3).clamp_max(self.side // 2), []
        for cell, own in enumerate(chosen):
            index, spectrum = own[shell], torch.zeros((*shell.shape,), dtype=torch.complex128)
            for number in own.unique().tolist():
                spectrum += torch.where(index == number, rfftn(candidates[number][cell].double(), 3), 0)
            result.append(irfftn(spectrum, (self.side,) * 3).float())
        return torch.stack(result)

    def halves(self, number: int, cell: int) -> torch.Tensor:
        """The half maps of a candidate at a cell, float64 [2, D, D, D]."""
        b, C = self._weighted(number, cell)
        prior = prior_weights(C.mean(0), self._correlation(number))
        return torch.stack([regularised(b[half], C[half], prior) for half in (0, 1)])

    def risk(self, number: int, cell: int) -> torch.Tensor:
        """The terms of R of a candidate and a cell in each shell from 1 on, of both halves, float64 [2, D // 2]."""
        found = []
        spectra = rfftn(self.halves(number, cell), 3)
        data, C = rfftn(self.sums[cell].double(), 3), self.densities[cell].double()
        for a in (0, 1):
            X, b = spectra[a], data[1 - a]
            error = C[1 - a] * X.abs().square() - 2 * (X.conj() * b).real
            found.append(ring_sums(error[None, None], (self.side,) * 3)[0])
        return torch.stack(found)

    def _weighted(self, number: int, cell: int) -> tuple[torch.Tensor, torch.Tensor]:
        w = self.weights[number][cell]
        used = w.nonzero()[:, 0]
        b = torch.tensordot(w[used].float(), self.sums[used], 1).double()
        return b, torch.tensordot(w[used].float(), self.densities[used], 1).double()

    def _correlation(self, number: int) -> torch.Tensor:
        """The correlation of half maps of a candidate, the mean over the cells, [D // 2]."""
        if number not in self._correlations:
            curves = []
            for cell in range(self.count if number < len(self.weights) - 1 else 1):
                b, C = self._weighted(number, cell)
                first, second = (regularised(b[h], C[h], least_prior(C[h])) for h in (0, 1))
                curves.append(shell_correlation(first, second, self._mask))
            self._correlations[number] = torch.stack(curves).mean(0)
        return self._correlations[number]

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


def least_prior(C: torch.Tensor) -> torch.Tensor:
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


def choose_by_halves(regression: Regression, candidates: list[torch.Tensor]) -> torch.Tensor:
    """The candidate of the least R of a shell, the same for all cells, where R is below that of all particles by more
    than its standard error over cells and halves; else all particles."""
    risks = torch.stack([
        torch.cat([regression.risk(number, cell) for cell in range(regression.count)])
        for number in range(len(regression.weights))
    ])  # fmt: skip
    gain = risks - risks[-1]
    best = (gain.sum(dim=1) + gain.std(dim=1) * gain.shape[1] ** 0.5).argmin(dim=0)
    best = torch.cat([best[:1], best])
    return best.expand(regression.count, -1)


def choose_by_truth(true: Callable[[int], torch.Tensor]) -> Choice:
    """The candidate whose map correlates best with the true one [D, D, D] of a cell, in each shell."""

    def choose(regression: Regression, candidates: list[torch.Tensor]) -> torch.Tensor:
        found = []
        for cell in range(regression.count):
            own = true(cell).double().cpu()
            best = torch.stack([shell_correlation(maps[cell].double(), own) for maps in candidates]).argmax(dim=0)
            found.append(torch.cat([best[:1], best]))
        return torch.stack(found)

    return choose


def _weights(distances: torch.Tensor) -> list[torch.Tensor]:
    """The weights [p, p] of the cells in the map at each place, for 1, 2, 4, ... neighbours and for all."""
    p, found, n = len(distances), [], 1
    order = distances.sort(dim=1).values
    while n < p:
        width = order[:, n : n + 1].clamp_min(1e-30)
        found.append((1 - (distances / width).square()).clamp_min(0))
        n *= 2
    return [*found, torch.ones_like(distances)]
