"""The source `tissue`: synthetic volumes of membranes, vesicles and filaments, equal along all axes.

They stand in for real volumes, which a package cannot ship. docs/volumes.md has all assumptions. In short, in voxels:

- Space is warped, p -> p + u(p), with u Gaussian noise of standard deviation `WARP` smoothed over `WARP_LENGTH`.
- Cells are the Voronoi cells of uniform random points, `CELL`^3 voxels each. Two membranes run along each boundary, at
  the distance `CLEFT` from it. The signed distance to the boundary of the two nearest points a and b is
  (|p - b|^2 - |p - a|^2) / (2 |a - b|). The interior of each cell has its own intensity.
- Vesicles are spheres of uniform random radius and position, with a membrane.
- Filaments are tubes around straight lines of random direction and place.
- The cytoplasm has a texture, Gaussian noise smoothed over `TEXTURE_LENGTH`.

Membranes and filaments have a Gaussian profile across, of the standard deviations `THICKNESS` and `TUBE`, and absorb:
the intensity is that of the interior times the product of (1 - amplitude x profile), blurred by a Gaussian of `SPOT`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from cryobench.core import Shape, Source, Stack
from cryobench.core.source import size_text
from cryobench.errors import ParameterError
from cryobench.limits import check_memory
from cryobench.rng import generator
from cryobench.sources.sections import View, viewed

VOXEL = 100.0
"""Å per voxel."""
WARP, WARP_LENGTH = 5.0, 12.0
CELL, CLEFT, THICKNESS = 44.0, 1.8, 1.8
INTERIOR, SPREAD = 0.62, 0.2
"""Mean intensity of the interior of cells, and its standard deviation between cells."""
TEXTURE, TEXTURE_LENGTH = 0.115, 0.5
VESICLES, RADII = 1 / 3000, (2.0, 3.5)
"""Vesicles per voxel, and the range of their radii."""
FILAMENTS, TUBE = 1 / 1500, 0.8
"""Filaments per square voxel of a plane that they cross, and the standard deviation of their profile."""
MEMBRANE, VESICLE, FILAMENT = 0.45, 0.4, 0.3
"""Amplitudes: the fraction of the intensity that is absorbed at the centre."""
SPOT = 0.6
"""Standard deviation of the point-spread function."""
_MARGIN = 60
"""Voxels around the volume in which cells, vesicles and filaments are drawn too."""
_BYTES_PER_VOXEL = 160
"""Peak memory in bytes while a volume is made, for each voxel."""


@dataclass(frozen=True)
class Tissue(Source):
    """Synthetic tissue: membranes of cells, vesicles and filaments in volumes that are equal along all axes.

    Neighbouring sections correlate as those of isotropic FIB-SEM volumes of neural tissue at 10 nm: about 0.95, 0.90,
    0.75 and 0.53 over 1, 2, 4 and 8 sections, along every axis. There is no noise. Volume i depends on the seed, i and
    the size alone, so that the volumes of two seeds are independent.
    """

    seed: Annotated[int, "seed of the volumes"] = 0
    count: Annotated[int, "number of volumes"] = 1
    depth: Annotated[int, "sections along z, voxels"] = 64
    size: Annotated[int, "side of a section along y and x, voxels"] = 128
    view: Annotated[View, "whole volumes, their sections Y x X as images, or their reslices Z x X as images"] = (
        "volumes"
    )

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("depth", 8), ("size", 8)):
            if getattr(self, name) < least:
                raise ParameterError(f"tissue: {name} must be at least {least}, got {getattr(self, name)}")
        if not -(2**63) <= self.seed < 2**63:
            raise ParameterError(f"tissue: seed must fit in 64 bits, got {self.seed}")
        voxels = (self.depth + 2 * _MARGIN) * (self.size + 2 * _MARGIN) ** 2
        check_memory("tissue", _BYTES_PER_VOXEL * voxels, "give a smaller depth or size")

    def open(self) -> Stack:
        """The volumes or their images, which are made when they are read."""
        return viewed(TissueStack(self), self.view)


class TissueStack(Stack):
    """The volumes of a `Tissue`, intensities in [0, 1]."""

    def __init__(self, recipe: Tissue):
        self._recipe = recipe
        self.shape: Shape = (recipe.depth, recipe.size, recipe.size)
        self.label = f"synthetic tissue {size_text(self.shape)}"

    def __len__(self) -> int:
        return self._recipe.count

    def read(self, index: int) -> np.ndarray:
        """Volume `index`, float32 [D, H, W]."""
        self.check(index)
        return volume(self.shape, self._recipe.seed, index)

    def files(self, images: Sequence[int]) -> list[Path]:
        """None: the parameters determine the volumes."""
        return []

    def pixel_size(self, index: int) -> float:
        """Å per voxel."""
        return VOXEL

    @property
    def white_noise(self) -> bool:
        """There is no noise."""
        return True

    @property
    def origin(self) -> dict[str, str]:
        """Tissue and its seed."""
        return {"structure": "tissue", "seed": str(self._recipe.seed)}


def volume(shape: Shape, seed: int, number: int = 0) -> np.ndarray:
    """Volume `number` of a seed, float32 [D, H, W] with values in [0, 1]."""
    from scipy.ndimage import gaussian_filter
    from scipy.spatial import KDTree

    def drawn(purpose: str, count: int, columns: int) -> np.ndarray:
        """Uniform numbers in [0, 1), [count, columns]."""
        draw = torch.rand((count, columns), generator=generator(seed, number, shape, purpose), dtype=torch.float64)
        return draw.numpy()

    def places(purpose: str, density: float) -> np.ndarray:
        """Uniform random points in the volume and its margin, [n, 3]."""
        return drawn(purpose, round(density * math.prod(box)), 3) * box - _MARGIN

    box = np.array(shape) + 2 * _MARGIN
    points = np.indices(shape).reshape(3, -1).T.astype(np.float64)
    for axis in range(3):
        points[:, axis] += WARP * smooth_noise(shape, WARP_LENGTH, (seed, number, "warp", axis)).ravel()

    seeds = places("cells", CELL**-3)
    distances, nearest = (np.asarray(found) for found in KDTree(seeds).query(points, k=2))
    apart = np.linalg.norm(seeds[nearest[:, 0]] - seeds[nearest[:, 1]], axis=1)
    boundary = (distances[:, 1] ** 2 - distances[:, 0] ** 2) / (2 * apart)
    normal = torch.randn(len(seeds), generator=generator(seed, number, shape, "interior"), dtype=torch.float64).numpy()
    image = (INTERIOR + SPREAD * normal)[nearest[:, 0]]
    image += TEXTURE * smooth_noise(shape, TEXTURE_LENGTH, (seed, number, "texture")).ravel()
    image *= 1 - MEMBRANE * _profile(boundary - CLEFT, THICKNESS)

    centres = places("vesicles", VESICLES)
    radii = RADII[0] + (RADII[1] - RADII[0]) * drawn("radii", len(centres), 1)[:, 0]
    reach = RADII[1] + 4 * THICKNESS
    distances, nearest = (np.asarray(v) for v in KDTree(centres).query(points, distance_upper_bound=reach))
    near = np.isfinite(distances)
    image[near] *= 1 - VESICLE * _profile(distances[near] - radii[nearest[near]], THICKNESS)

    filaments = KDTree(_lines(drawn, box) - _MARGIN)
    distances = np.asarray(filaments.query(points, distance_upper_bound=4 * TUBE)[0])
    image *= 1 - FILAMENT * _profile(distances, TUBE)
    return gaussian_filter(np.clip(image, 0, 1).astype(np.float32).reshape(shape), SPOT)


def smooth_noise(shape: Shape, length: float, key: tuple[object, ...]) -> np.ndarray:
    """Gaussian noise of standard deviation 1, smoothed with a Gaussian of standard deviation `length`, float64.

    It is drawn on a grid of `length` / 3, if that is more than a voxel, in a margin of four lengths too, and brought to
    voxels by cubic splines: a Gaussian of three grid steps has no content that they would miss.
    """
    from scipy.interpolate import CubicSpline
    from scipy.ndimage import gaussian_filter

    step = max(1.0, length / 3)
    width = length / step
    margin = math.ceil(4 * width)
    coarse = [math.ceil(n / step) + 1 + 2 * margin for n in shape]
    noise = gaussian_filter(torch.randn(coarse, generator=generator(*key, shape), dtype=torch.float64).numpy(), width)
    noise *= (2 * math.sqrt(math.pi) * width) ** (len(shape) / 2)
    for axis, (n, m) in enumerate(zip(shape, coarse, strict=True)):
        if step == 1:
            noise = noise.take(range(margin, margin + n), axis=axis)
        else:
            matrix = CubicSpline(np.arange(m), np.eye(m))(margin + np.arange(n) / step)
            noise = np.moveaxis(np.tensordot(matrix, noise, axes=(1, axis)), 0, axis)
    return noise / _shrinkage(width) ** (len(shape) / 2)


def _shrinkage(width: float) -> float:
    """The variance along one axis of sampled white noise after a sampled Gaussian filter, relative to that of the
    continuous formula: 1 unless the Gaussian is narrower than a grid step."""
    g = np.exp(-0.5 * np.square(np.arange(-50, 51) / width))
    return float(np.square(g / g.sum()).sum() * 2 * math.sqrt(math.pi) * width)


def _profile(distance: np.ndarray, deviation: float) -> np.ndarray:
    """exp(-d^2 / (2 deviation^2)), 0 at infinity."""
    return np.exp(-0.5 * np.square(distance / deviation))


def _lines(drawn, box: np.ndarray) -> np.ndarray:
    """Points half a voxel apart on straight lines of uniform random direction through uniform random points of a ball
    around the box, [n, 3], those inside the box.

    Lines through random points of a disc across their direction are isotropic and uniform in the ball; their number is
    `FILAMENTS` times the area of the disc.
    """
    radius = float(np.linalg.norm(box)) / 2
    count = max(1, round(FILAMENTS * math.pi * radius**2))
    u = drawn("filaments", count, 4)
    z, phi = 2 * u[:, 0] - 1, 2 * math.pi * u[:, 1]
    r = np.sqrt(1 - z**2)
    along = np.stack([z, r * np.cos(phi), r * np.sin(phi)], axis=1)
    helper = np.where(np.abs(along[:, :1]) < 0.9, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    first = np.cross(along, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    rho, theta = radius * np.sqrt(u[:, 2:3]), 2 * math.pi * u[:, 3:4]
    through = box / 2 + rho * (np.cos(theta) * first + np.sin(theta) * second)
    steps = np.arange(-radius, radius, 0.5)
    points = (through[:, None] + steps[None, :, None] * along[:, None]).reshape(-1, 3)
    return points[((points >= 0) & (points < box)).all(axis=1)]
