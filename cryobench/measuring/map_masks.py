"""Masks that a user names for maps, a file or the radius of a ball, and other maps that must have their voxels."""

from __future__ import annotations

from pathlib import Path

import torch

from cryobench.errors import DataError, ParameterError
from cryobench.io.maps import Map, read_map
from cryobench.maps.inversion import EDGE
from cryobench.maps.masks import soft_ball

_SAME = 1e-3
"""Relative difference of pixel sizes, and excess of values beyond 0 and 1, that count as rounding."""


def check_one(mask: Path | None, radius: float | None) -> None:
    """Raise `ParameterError` if both --mask and --radius are given."""
    if mask is not None and radius is not None:
        raise ParameterError("--mask and --radius are both given; give one of them")


def read_mask(path: Path, side: int, pixel_size: float | None, *, others: str, remedy: str) -> torch.Tensor:
    """The mask in a file, float32 [D, D, D], its values in [0, 1]; arguments as for `read_matching`.

    Raises `DataError` as it does, and for values outside [0, 1] and a mask that is nowhere above 1/2.
    """
    mask = read_matching(path, "mask", side, pixel_size, others=others, remedy=remedy).volume
    low, high = float(mask.min()), float(mask.max())
    if low == high == 0:
        raise DataError(f"{path} is 0 everywhere; expected a mask from 0 to 1, which is 1 where the particle is")
    if low < -_SAME or not 0.5 < high <= 1 + _SAME:
        raise DataError(f"{path} has values from {low:.3g} to {high:.3g}; expected a mask from 0 to 1")
    return torch.from_numpy(mask.clip(0, 1))


def ball_mask(radius: float, side: int, pixel_size: float | None) -> torch.Tensor:
    """The ball of --radius in Å, or in pixels without a pixel size: 1 within it, and a soft edge of `EDGE` voxels
    outside, float32 [D, D, D]. Raises `ParameterError` for a radius below one voxel or above half the box."""
    size, unit = pixel_size or 1.0, "Å" if pixel_size else "pixels"
    if not 1 <= radius / size <= side / 2:
        raise ParameterError(f"--radius {radius:g}: expected {size:.3g} to {side / 2 * size:.3g} {unit}, half the box")
    return soft_ball(side, radius / size, EDGE)


def read_matching(path: Path, what: str, side: int, pixel_size: float | None, *, others: str, remedy: str) -> Map:
    """A map of `side` voxels of `pixel_size` Å, None if that is not known or not to be compared.

    what: the part of the map, others: those that it must match, remedy: what to do about another pixel size, for
    messages. Raises `DataError` for another size, and as `read_map`.
    """
    found = read_map(path, what)
    if len(found.volume) != side:
        raise DataError(
            f"{path} has {len(found.volume)} voxels a side and the {others} {side}; expected a {what} of the same "
            "size: resample it"
        )
    if differ(found.pixel_size, pixel_size):
        raise DataError(
            f"{path} has {found.pixel_size:.5g} Å per voxel and the {others} {pixel_size:.5g}; expected the same: "
            f"{remedy}"
        )
    return found


def differ(first: float | None, second: float | None) -> bool:
    """Whether two pixel sizes are known and not the same."""
    return first is not None and second is not None and abs(first - second) > _SAME * min(first, second)
