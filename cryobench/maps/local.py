"""Resolution of a map from place to place, by shell correlations within soft balls."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from cryobench.core.source import size_text
from cryobench.errors import ParameterError
from cryobench.maps.fsc import HALF_MAPS
from cryobench.maps.masks import soft_ball
from cryobench.metrics.rings import crossing
from cryobench.metrics.spectral import correlation

DIAMETER = 7.0
"""Of a ball, in resolutions of the whole map (Cardone et al. 2013)."""
_VOXELS = 2**22
"""Voxels of the balls that are transformed at once."""


def local_resolution(
    half1: torch.Tensor,
    half2: torch.Tensor,
    mask: torch.Tensor,
    *,
    radius_pixels: float,
    pixel_size: float | None,
    threshold: float = HALF_MAPS,
) -> torch.Tensor:
    """The resolution at each voxel of two half maps [D, D, D] in Å, or in pixels without a pixel size, float32.

    (Cardone, Heymann and Steven 2013, J. Struct. Biol. 184:226.) It is where the shell correlation within a soft ball
    around the voxel falls below `threshold`: a ball of this radius with an edge of half its width more. Balls are
    computed on a grid of half a radius where the mask is above 1/2, and their resolutions interpolated linearly;
    elsewhere it is that of the nearest ball. Balls lie within the box. Raises `ParameterError` for a ball that does not
    fit.
    """
    from scipy.ndimage import distance_transform_edt, map_coordinates

    side, edge = half1.shape[0], radius_pixels / 2
    width = 2 * math.ceil(radius_pixels + edge) + 1
    if width > side or radius_pixels < 2:
        raise ParameterError(
            f"local resolution needs balls of at least 2 pixels that fit in the box: their radius is "
            f"{radius_pixels:.3g} pixels, with an edge {width} across, and the map has {size_text(half1.shape)} "
            "voxels; pad it, or leave it out"
        )
    ball = soft_ball(width, radius_pixels, edge, dtype=torch.float64, device=half1.device)
    step = max(1, round(radius_pixels / 2))
    first = width // 2 + (side - width) % step // 2
    axis = list(range(first, side - width + width // 2 + 1, step))
    centres = list(itertools.product(axis, repeat=3))
    chosen = [i for i, (z, y, x) in enumerate(centres) if mask[z, y, x] > 0.5] or list(range(len(centres)))
    found = np.full(len(centres), np.nan)
    at_once = max(1, _VOXELS // width**3)
    for start in range(0, len(chosen), at_once):
        part = chosen[start : start + at_once]
        windows = [tuple(slice(c - width // 2, c - width // 2 + width) for c in centres[i]) for i in part]
        a, b = (torch.stack([half[window] for window in windows])[:, None].double() for half in (half1, half2))
        curves = correlation(a, b, ball[None, None])
        found[part] = ((pixel_size or 1.0) / crossing(curves, threshold, (width,) * 3)).cpu().numpy()
    grid = found.reshape((len(axis),) * 3)
    nearest = distance_transform_edt(np.isnan(grid), return_distances=False, return_indices=True)
    grid = grid[tuple(np.asarray(nearest))]
    place = (np.arange(side) - axis[0]) / step
    places = np.stack(np.meshgrid(place, place, place, indexing="ij")).clip(0, len(axis) - 1)
    return torch.from_numpy(map_coordinates(grid, places, order=1, mode="nearest").astype(np.float32))
