"""Affine intensity scalings of an image or volume, each with its inverse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cryobench.core import Scale
from cryobench.core.source import size_text
from cryobench.errors import DataError, ParameterError


@dataclass(frozen=True)
class Scaling:
    """x = (image - offset) / factor, in float64 and rounded to float32. offset and factor: in the image's units."""

    offset: float
    factor: float

    def apply(self, image: np.ndarray) -> np.ndarray:
        """From the units of the file to the scale: float32 of the same shape."""
        return _applied(image, self.offset, self.factor)

    def undo(self, scaled: np.ndarray) -> np.ndarray:
        """The inverse of `apply`: float32 of the same shape, in the units of the file."""
        return (self.offset + scaled.astype(np.float64) * self.factor).astype(np.float32)

    def inverted(self) -> Scaling:
        """The same with the contrast inverted, x -> -x."""
        return replace(self, factor=-self.factor)


def apply_each(maps: Sequence[Scaling], images: np.ndarray) -> np.ndarray:
    """Images [n, *S], each by its own map: float32 of the same shape."""
    each = (len(maps), *(1 for _ in images.shape[1:]))
    offset, factor = (np.array([getattr(map_, name) for map_ in maps]).reshape(each) for name in ("offset", "factor"))
    return _applied(images, offset, factor)


def _applied(images: np.ndarray, offset: Any, factor: Any) -> np.ndarray:
    scaled = images.astype(np.float64)
    scaled -= offset
    scaled /= factor
    return scaled.astype(np.float32)


def none_scaling(image: np.ndarray, where: str) -> Scaling:
    """The identity."""
    _finite_range(image, where)
    return Scaling(0.0, 1.0)


def minmax(image: np.ndarray, where: str) -> Scaling:
    """The minimum to -1 and the maximum to 1: x = 2 (image - lo) / (hi - lo) - 1."""
    lo, hi = _range(image, where)
    return Scaling(lo / 2 + hi / 2, hi / 2 - lo / 2)  # halves do not overflow


def minmax_each(images: np.ndarray, where: Callable[[int], str]) -> list[Scaling]:
    """`minmax` of each of the images [n, *S]. where: the name of one of them, by its place."""
    axes = tuple(range(1, images.ndim))
    if images.size == 0:
        return [minmax(image, where(place)) for place, image in enumerate(images)]
    lo, hi = (limits.astype(np.float64) for limits in (images.min(axes), images.max(axes)))
    refused = ~(np.isfinite(lo) & np.isfinite(hi) & (lo < hi))
    if refused.any():
        place = int(np.argmax(refused))
        minmax(images[place], where(place))
    return list(map(Scaling, (lo / 2 + hi / 2).tolist(), (hi / 2 - lo / 2).tolist()))


def image_digest(image: np.ndarray) -> str:
    """SHA-256 of an image [*S], float32 scaled from its own limits to [-1, 1], so that units do not matter."""
    return hashlib.sha256(repr((1, *image.shape)).encode() + image.tobytes()).hexdigest()


def digest_of(image: np.ndarray, where: str) -> str:
    """`image_digest` of an image in the units of its file. Raises `DataError` for a constant one."""
    return image_digest(minmax(image, where).apply(image))


def meanstd(image: np.ndarray, where: str) -> Scaling:
    """Mean 0 and standard deviation 1 over all pixels."""
    _range(image, where)
    return _standard(image)


def relion(image: np.ndarray, where: str, *, radius: float | None = None) -> Scaling:
    """Mean 0 and standard deviation 1 over the background, as RELION normalises particles (without its ramp).

    The background is farther than `radius` pixels from the pixel n // 2 of each axis: outside a circle, or a ball in
    3-D. The default is 3/8 of the shortest side, RELION's circle of 75% of the box. (Scheres 2012, J. Struct. Biol.
    180:519.) Raises `ParameterError` for a radius that leaves no background.
    """
    _range(image, where)
    r = 3 / 8 * min(image.shape) if radius is None else radius
    if not r > 0:
        raise ParameterError(f"{where}: the particle's radius is {r:g} pixels; expected a positive number")
    axes = np.ogrid[tuple(slice(-(n // 2), n - n // 2) for n in image.shape)]
    background = image[sum(axis**2 for axis in axes) > r**2]
    if background.size < 2:
        raise ParameterError(
            f"{where}: a particle of radius {r:g} pixels leaves no background in {size_text(image.shape)}; "
            "give a smaller radius, or use another scaling"
        )
    if background.min() == background.max():
        raise DataError(f"{where} has a constant background, {background[0]:g}; use another normalisation")
    return _standard(background)


def p95(image: np.ndarray, where: str) -> Scaling:
    """The 95th percentile of the positive pixels to 1, and 0 to 0, for images without negative pixels."""
    lo, _ = _range(image, where)
    if lo < 0:
        raise DataError(f"{where} has negative pixels, down to {lo:g}; p95 expects none: use meanstd, relion or minmax")
    return Scaling(0.0, float(np.percentile(image[image > 0].astype(np.float64), 95)))


MINMAX = "minmax"
"""The default map, and the only one whose images have a known range."""
NORMALISATIONS: dict[str, Callable[..., Scaling]] = {
    MINMAX: minmax,
    "none": none_scaling,
    "meanstd": meanstd,
    "relion": relion,
    "p95": p95,
}
"""By name: function(image, where, **options) -> Scaling; error messages begin with `where`, the name of the image.

Each raises `DataError` for an image that is empty, not finite or, except by `none`, constant.
"""


def scaling_of(
    name: str, image: np.ndarray, where: str, *, radius: float | None = None, invert: bool = False
) -> Scaling:
    """The scaling of an image by the normalisation `name`.

    radius: of the particle in pixels, for `relion` only. invert: invert the contrast. Raises `ParameterError` for an
    unknown name and for a radius with another normalisation, `DataError` for an image that cannot be scaled.
    """
    if name not in NORMALISATIONS:
        raise ParameterError(f"unknown normalisation {name!r}; known are {', '.join(NORMALISATIONS)}")
    if radius is not None and name != "relion":
        raise ParameterError(f"normalisation {name} takes no radius, got {radius:g}; leave it out, or use relion")
    options: dict[str, Any] = {} if radius is None else {"radius": radius}
    scaling = NORMALISATIONS[name](image, where, **options)
    return scaling.inverted() if invert else scaling


def scale_of(name: str, maps: Sequence[Scaling]) -> Scale:
    """The scale of a batch of images, each with its own map of this name. Only `minmax` has a range."""
    offset = torch.tensor([each.offset for each in maps], dtype=torch.float64)
    factor = torch.tensor([each.factor for each in maps], dtype=torch.float64)
    return Scale(offset, factor, (-1.0, 1.0) if name == MINMAX else None, name)


def _finite_range(image: np.ndarray, where: str) -> tuple[float, float]:
    """The minimum and the maximum. Raises `DataError` for an image that is empty or not finite."""
    if image.size == 0:
        raise DataError(f"{where} has no pixels; choose another image")
    lo, hi = float(image.min()), float(image.max())
    if not (np.isfinite(lo) and np.isfinite(hi)):
        raise DataError(f"{where} has values that are not finite; leave this image out")
    return lo, hi


def _range(image: np.ndarray, where: str) -> tuple[float, float]:
    """The minimum and the maximum. Raises `DataError` for an image that is empty, constant or not finite."""
    lo, hi = _finite_range(image, where)
    if lo == hi:
        raise DataError(f"{where} is constant (every pixel is {lo:g}), so it cannot be scaled; leave this image out")
    return lo, hi


def _standard(pixels: np.ndarray) -> Scaling:
    """Mean 0 and standard deviation 1 over these pixels."""
    values = pixels.astype(np.float64)
    return Scaling(float(values.mean()), float(values.std()))
