"""Hierarchical search for the poses of images against a known map.

All rotations of a grid on SO(3) and all shifts of a square grid are compared with each image at low frequencies
(`maps.likelihood`); the best few poses of each image are kept. Each refinement replaces a kept pose by the 8 rotations
and 4 shifts that halve the spacing around it, and compares them at higher frequencies (as in cryoDRGN2, Zhong, Lerer,
Davis & Berger 2021, ICCV, 4066; values there for images of 128 pixels: 4608 rotations, 7 x 7 shifts over +-20 pixels, 8
poses kept, 4 refinements, 12 to 32 cycles per box).

The frequencies belong to the spacing of the rotations: neighbours of the grid, at q radians, differ by a phase of about
2 pi k r q at the edge of a particle of r box sides. So they are kept in cycles per box for every box, unless it has not
that many: at most 3/8 and 7/8 of Nyquist's, 12 and 28 for 64 pixels. The shifts scale with the side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cryobench.errors import ParameterError
from cryobench.maps.likelihood import Band, InBand, Whitened
from cryobench.maps.particle_images import ParticleImages
from cryobench.maps.rotations import children, grid, spacing
from cryobench.physics.poses import Poses

_PUBLISHED_SIDE, _PUBLISHED_LOWEST, _PUBLISHED_HIGHEST, _PUBLISHED_SHIFT = 128, 12.0, 32.0, 20.0
_MOST_LOWEST, _MOST_HIGHEST = 3 / 8, 7 / 8
"""Of Nyquist's frequency."""
_LEAST = 2.0
"""Cycles per box that a search needs."""
_NUMBERS = 2**24
"""Numbers of the largest array of a batch, 64 MiB."""


@dataclass(frozen=True)
class Settings:
    """How poses are searched. None: the published value for 128 pixels, as far as the box has it.

    order: of the first grid of rotations. refinements: halvings of the spacing. kept: poses that are refined.
    lowest, highest: the largest frequency of the first and of the last comparison, cycles per box. shift: largest shift
    along x and y, pixels. steps: shifts along an axis of the first grid.
    """

    order: int = 2
    refinements: int = 4
    kept: int = 8
    lowest: float | None = None
    highest: float | None = None
    shift: float | None = None
    steps: int = 7

    def __post_init__(self) -> None:
        """Raise `ParameterError` for values that no box can have."""
        for name, least, most in (("order", 0, 4), ("refinements", 0, 8), ("kept", 1, 64), ("steps", 1, 31)):
            if not least <= getattr(self, name) <= most:
                raise ParameterError(f"pose search: {name} must be {least} to {most}, got {getattr(self, name)}")
        for name in ("lowest", "highest", "shift"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ParameterError(f"pose search: {name} must not be negative, got {value:g}")

    def for_side(self, side: int) -> Search:
        """The values for images of `side` pixels. Raises `ParameterError` for stated ones that the box cannot have."""
        nyquist = side / 2
        for name in ("lowest", "highest"):
            value = getattr(self, name)
            if value is not None and not _LEAST <= value <= nyquist:
                raise ParameterError(
                    f"pose search: {name} must be {_LEAST:g} to {nyquist:g} cycles per box, Nyquist's, for images of "
                    f"{side} pixels, got {value:g}"
                )
        highest = self.highest or max(min(_PUBLISHED_HIGHEST, _MOST_HIGHEST * nyquist), self.lowest or _LEAST)
        lowest = self.lowest or min(max(min(_PUBLISHED_LOWEST, _MOST_LOWEST * nyquist), _LEAST), highest)
        if nyquist < 2 * _LEAST:
            raise ParameterError(
                f"pose search: images of {side} pixels have {nyquist:g} cycles per box, and poses need at least "
                f"{2 * _LEAST:g}; give larger ones"
            )
        if lowest > highest:
            raise ParameterError(f"pose search: lowest ({lowest:g}) is above highest ({highest:g}); exchange them")
        shift = _PUBLISHED_SHIFT * side / _PUBLISHED_SIDE if self.shift is None else self.shift
        if shift > side / 2:
            raise ParameterError(
                f"pose search: shift must be at most half of the side, {side / 2:g} pixels, got {shift:g}"
            )
        return Search(self.order, self.refinements, self.kept, lowest, highest, shift, 1 if shift == 0 else self.steps)


@dataclass(frozen=True)
class Search:
    """`Settings` with all values."""

    order: int
    refinements: int
    kept: int
    lowest: float
    highest: float
    shift: float
    steps: int

    def frequencies(self) -> list[float]:
        """The highest frequency of each comparison, from the lowest to the highest in equal steps."""
        steps = max(self.refinements, 1)
        return [self.lowest + (self.highest - self.lowest) * level / steps for level in range(self.refinements + 1)]

    def shifts(self) -> tuple[torch.Tensor, float]:
        """The first shifts, pixels [S, 2], and their spacing."""
        along = torch.linspace(-self.shift, self.shift, self.steps) if self.steps > 1 else torch.zeros(1)
        apart = 2 * self.shift / (self.steps - 1) if self.steps > 1 else 2 * self.shift
        return torch.cartesian_prod(along, along).float(), apart


@dataclass(frozen=True, eq=False)
class Found:
    """The kept poses of N images, the best first. rotations: A, float64 [N, K, 3, 3]. shift: (x, y) pixels, float64
    [N, K, 2]. gains: log-likelihood less that without a particle, float32 [N, K]."""

    rotations: torch.Tensor
    shift: torch.Tensor
    gains: torch.Tensor

    def best(self, pixel_size: float) -> Poses:
        """The best pose of each image; shifts are in the unit of the pixel size."""
        return Poses.of_matrices(self.rotations[:, 0].cpu(), self.shift[:, 0].cpu() * pixel_size)

    @staticmethod
    def join(parts: list[Found]) -> Found:
        """Those of several sets of images, one after another."""
        return Found(*(torch.cat([getattr(part, name) for part in parts]) for name in ("rotations", "shift", "gains")))


def search(
    images: ParticleImages,
    volume: torch.Tensor,
    settings: Settings = Settings(),
    *,
    watch: Callable[[int], None] | None = None,
) -> Found:
    """The poses of N images against a map [D, D, D] in the units of the file, times the pixel size.

    watch: called with the number of images done after each batch. Raises `ParameterError` as `Settings.for_side`.
    """
    return search_whitened(Whitened.of(images), volume, settings.for_side(images.side), watch=watch)


def search_whitened(
    images: Whitened,
    volume: torch.Tensor,
    settings: Search,
    *,
    start: Found | None = None,
    watch: Callable[[int], None] | None = None,
) -> Found:
    """`search` with all values. start: kept poses, around which the first comparison is made, instead of a grid.

    They are then compared at the lowest frequency, as they are.
    """
    device = images.spectra.device
    bands = [Band.of(images.side, highest, device) for highest in settings.frequencies()]
    first = bands[0]
    volume = volume.to(device, torch.float32)
    rotations = grid(settings.order).to(device, torch.float32)
    shifts, apart = settings.shifts()
    shifts = shifts.to(device)
    projectors = [band.projector(volume) for band in bands]
    slices = None if start is not None else projectors[0].values(first.k, rotations)
    length = max(1, min(256, _NUMBERS // (len(rotations) * len(shifts))))
    if start is not None:
        length = max(1, min(256, _NUMBERS // (64 * settings.kept * len(bands[-1]))))
    results, done = [], 0
    for rows in torch.arange(len(images)).split(length):
        chosen = images.select(rows.to(device))
        if start is None:
            assert slices is not None
            kept = _best_of_grid(chosen.within(first), rotations, slices, shifts, settings.kept)
        else:
            kept = Found(*(getattr(start, name)[rows].to(device) for name in ("rotations", "shift", "gains")))
        degrees, pixels = spacing(settings.order), apart
        for band, projector in zip(bands[1:], projectors[1:], strict=True):
            kept = _refined(chosen.within(band), projector, kept, degrees, pixels, settings.kept)
            degrees, pixels = degrees / 2, pixels / 2
        results.append(kept)
        done += len(rows)
        if watch is not None:
            watch(done)
    return Found.join(results)


def _best_of_grid(
    images: InBand, rotations: torch.Tensor, slices: torch.Tensor, shifts: torch.Tensor, kept: int
) -> Found:
    """The best rotations of the grid, each with its best shift."""
    gains, shift = images.gains(slices, shifts).max(dim=1)
    best, which = gains.topk(min(kept, len(rotations)), dim=1)
    return Found(rotations[which].double(), shifts[shift.gather(1, which)].double(), best)


def _refined(images: InBand, projector, kept: Found, degrees: float, pixels: float, count: int) -> Found:
    """The best of all poses that refine the kept ones, `count` of them."""
    N, K = kept.gains.shape
    rotations = children(kept.rotations, degrees)
    quarter = pixels / 4
    corners = torch.cartesian_prod(*[torch.tensor([-quarter, quarter], dtype=torch.float64)] * 2)
    if pixels == 0:
        corners = corners[:1]
    shift = kept.shift[:, :, None] + corners.to(kept.shift)
    k = images.band.k
    slices = projector.values(k, rotations.flatten(0, 2).float()).unflatten(0, (N * K, 8))
    each = InBand(images.band, images.y.repeat_interleave(K, 0), images.c.repeat_interleave(K, 0))
    gains = each.gains_of_each(slices, shift.flatten(0, 1).float())  # [N K, S, 8]
    gains, best_shift = gains.max(dim=1)
    gains = gains.unflatten(0, (N, K)).flatten(1)
    shift = shift.flatten(0, 1).gather(1, best_shift[..., None].expand(-1, -1, 2)).unflatten(0, (N, K)).flatten(1, 2)
    best, which = gains.topk(min(count, gains.shape[1]), dim=1)
    rotations = rotations.flatten(1, 2).gather(1, which[..., None, None].expand(-1, -1, 3, 3))
    return Found(rotations, shift.gather(1, which[..., None].expand(-1, -1, 2)), best)
