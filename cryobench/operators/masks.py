"""Mask generators. Pixel masks multiply the image, Fourier masks its spectrum.

A mask depends only on (seed, generator, image shape). Masks are drawn on the CPU, one random stream per mask, so that
the first M masks of a longer draw are the same. The base class of a generator states its domain; operators raise an
error for the other domain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, ClassVar

import torch

from cryobench.core import FourierMask, PixelMask, Shape
from cryobench.errors import ParameterError
from cryobench.rng import generator

BANDS = 100
"""Number of equal-area rings, and of angular spokes, that the structured Fourier masks choose from."""


@dataclass(frozen=True)
class RandomBinary(PixelMask):
    """Independent pixels, 1 with probability `prob` and 0 otherwise."""

    dims = (2, 3)

    prob: Annotated[float, "probability that a pixel is open"] = 0.5

    def __post_init__(self) -> None:
        _check_probability("random_binary: prob", self.prob)

    def draw(self, count: int, shape: Shape, seed: int) -> torch.Tensor:
        return _each(self, count, shape, seed, lambda g: (torch.rand(shape, generator=g) < self.prob).float())


@dataclass(frozen=True)
class RandomGaussian(PixelMask):
    """Independent standard normal pixels.

    The public CryoSENSE code divides each pixel by its norm over the masks; here that is omitted,
    because a mask would depend on how many are drawn. A common factor changes no closed-form solution.
    """

    dims = (2, 3)
    nonnegative: ClassVar[bool] = False

    def draw(self, count: int, shape: Shape, seed: int) -> torch.Tensor:
        return _each(self, count, shape, seed, lambda g: torch.randn(shape, generator=g))


@dataclass(frozen=True)
class Checkerboard(PixelMask):
    """Square tiles that are open or closed as a whole, each open with probability `prob`."""

    prob: Annotated[float, "probability that a tile is open"] = 0.5
    tile: Annotated[int, "side of a tile, in pixels"] = 4

    def __post_init__(self) -> None:
        _check_probability("checkerboard: prob", self.prob)
        if self.tile < 1:
            raise ParameterError(f"checkerboard: tile must be at least 1 pixel, got {self.tile}")

    def draw(self, count: int, shape: Shape, seed: int) -> torch.Tensor:
        H, W = shape
        tiles = (math.ceil(H / self.tile), math.ceil(W / self.tile))

        def one(g: torch.Generator) -> torch.Tensor:
            coarse = (torch.rand(tiles, generator=g) < self.prob).float()
            tile = min(self.tile, max(H, W))
            return coarse.repeat_interleave(tile, 0).repeat_interleave(tile, 1)[:H, :W]

        return _each(self, count, shape, seed, one)


@dataclass(frozen=True)
class Superres(PixelMask):
    """All ones: plain sum pooling. More than one such mask measures nothing new."""

    dims = (2, 3)

    def draw(self, count: int, shape: Shape, seed: int) -> torch.Tensor:
        return torch.ones((count, *shape))


@dataclass(frozen=True)
class RandomFourier(FourierMask):
    """Independent coefficients, each kept with probability `rho`.

    For a real image a kept k also determines the coefficient at -k, so nominal `rho` keeps about 1 - (1 - rho)^2 of
    the information; with `hermitian=true` k and -k are drawn together and the fraction kept is rho.
    """

    dims = (2, 3)

    hermitian: Annotated[bool, "draw k and -k together"] = False

    def draw(self, rho: float, shape: Shape, seed: int) -> torch.Tensor:
        draws = torch.rand(shape, generator=_stream(self, shape, seed))
        if self.hermitian:
            draws = _same_on_mirror(draws)
        return draws < rho


@dataclass(frozen=True)
class FourierRing(FourierMask):
    """Whole rings (shells of volumes): of 100 bands of equal size, round(100 rho) are drawn without replacement.

    The weight of a band at mid-radius r (in pixels of the H x H spectrum) is exp(-r^2 / (2 (H/4)^2)); drawing
    without replacement is the Gumbel top-k trick (Kool et al. 2019).
    """

    dims = (2, 3)

    hermitian: Annotated[bool, "make the mask equal at k and -k (only the Nyquist row and column change)"] = False

    def draw(self, rho: float, shape: Shape, seed: int) -> torch.Tensor:
        radius = reduce(torch.hypot, _centred_frequencies(shape)) * shape[0]
        ordered = radius.flatten().sort().values
        edges = ordered[torch.arange(1, BANDS) * ordered.numel() // BANDS]
        inner = torch.cat([ordered[:1], edges])
        outer = torch.cat([edges, ordered[-1:]])
        log_weight = -(((inner + outer) / 2) ** 2) / (2 * (shape[0] / 4) ** 2)
        kept = _gumbel_top_k(log_weight, _bands_kept(rho), _stream(self, shape, seed))
        mask = kept[torch.bucketize(radius, edges, right=True)]
        return _or_mirror(mask) if self.hermitian else mask


@dataclass(frozen=True)
class FourierRadial(FourierMask):
    """Whole spokes: of 100 angular sectors round(100 rho) are drawn without replacement, with
    equal probability.

    A sector and its mirror image are drawn independently, as in the public CryoSENSE code; `hermitian=true` draws half
    as many pairs of opposite sectors.
    """

    hermitian: Annotated[bool, "draw opposite sectors together"] = False

    def draw(self, rho: float, shape: Shape, seed: int) -> torch.Tensor:
        ky, kx = _centred_frequencies(shape)
        angle = torch.atan2(kx, ky) / (2 * math.pi) + 0.5
        if self.hermitian:
            angle = (2 * angle) % 1.0
        sector = (angle * BANDS).long().clamp_max(BANDS - 1)
        kept = _gumbel_top_k(torch.zeros(BANDS), _bands_kept(rho), _stream(self, shape, seed))
        mask = kept[sector]
        return _or_mirror(mask) if self.hermitian else mask


def mirror(spectrum: torch.Tensor) -> torch.Tensor:
    """The centred array [*S] read at -k, indices modulo its size."""
    for axis, n in enumerate(spectrum.shape):
        spectrum = spectrum.index_select(axis, (2 * (n // 2) - torch.arange(n)) % n)
    return spectrum


def _or_mirror(mask: torch.Tensor) -> torch.Tensor:
    return mask | mirror(mask)


def _same_on_mirror(draws: torch.Tensor) -> torch.Tensor:
    """Use one draw for k and -k: the one that comes first in memory."""
    index = torch.arange(draws.numel()).reshape(draws.shape)
    return torch.where(mirror(index) < index, mirror(draws), draws)


def _centred_frequencies(shape: Shape) -> tuple[torch.Tensor, ...]:
    """Spatial frequencies in cycles/pixel along each axis, [*S] each, zero at index n // 2 of every axis."""
    return torch.meshgrid(*(torch.fft.fftshift(torch.fft.fftfreq(n)) for n in shape), indexing="ij")


def _bands_kept(rho: float) -> int:
    return min(BANDS, max(1, round(rho * BANDS)))


def _gumbel_top_k(log_weight: torch.Tensor, k: int, g: torch.Generator) -> torch.Tensor:
    """Which of the n items are among k drawn without replacement with these log weights, bool [n]."""
    uniform = torch.rand(log_weight.shape, generator=g).clamp(1e-9, 1 - 1e-7)
    chosen = (log_weight - (-uniform.log()).log()).topk(k).indices
    kept = torch.zeros(log_weight.shape, dtype=torch.bool)
    kept[chosen] = True
    return kept


def _stream(mask: object, shape: Shape, seed: int, index: int = 0) -> torch.Generator:
    return generator("mask", seed, repr(mask), tuple(shape), index)


def _each(mask: PixelMask, count: int, shape: Shape, seed: int, one) -> torch.Tensor:
    masks = torch.empty((count, *shape))
    for i in range(count):  # into one array: the masks of a micrograph take gigabytes
        masks[i] = one(_stream(mask, shape, seed, i))
    return masks


def _check_probability(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ParameterError(f"{name} must lie in (0, 1], got {value:g}")
